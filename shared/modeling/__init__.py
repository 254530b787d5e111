"""The one VITS definition that training, export and converters use."""
