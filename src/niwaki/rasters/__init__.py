"""Files of pixels with any number of bands, read by window: TIFF, block by block. No torch."""
