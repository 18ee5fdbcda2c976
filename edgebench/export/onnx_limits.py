"""What an ONNX export holds without being asked; apart from the exporter, because planning needs it without onnx."""

LONGEST_TABLE = 8192
"""Tokens of rotary tables, if the model was trained for as many; longer ones are asked for, because they take room."""
