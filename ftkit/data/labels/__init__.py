"""Labels of every kind: one class of a text, several labels, a number to predict."""
