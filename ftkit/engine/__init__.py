"""Engines, which spread a model and its optimizer over devices."""
