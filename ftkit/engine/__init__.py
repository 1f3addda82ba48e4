"""How a model and its optimizer are spread over devices."""
