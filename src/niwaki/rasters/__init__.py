"""Files of pixels with any number of bands, read by window: TIFF of all common kinds, block by block. No torch."""
