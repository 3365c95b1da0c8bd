"""Tables, figures and documents from stored rows; imports no torch and never writes back."""
