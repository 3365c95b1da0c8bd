"""Images as arrays: sets of images, decoding, the store of decoded images."""
