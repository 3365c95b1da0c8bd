"""Encoders: each file here is one, a class ``Encoder`` that makes features of images; common/ has what they share."""
