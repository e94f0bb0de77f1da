"""Quantization of ONNX graphs after training: what a recipe says, ranges of activations, and the int8 graph.

    recipe.py    what is done to a float graph on its way to int8, as JSON
    grid.py      a scale, a zero point and a number of bits: what a tensor is rounded to
    graph.py     which nodes run on whole numbers, which of their inputs are weights; readers and makers
    insert.py    grids into a graph: QuantizeLinear and DequantizeLinear around what runs on whole numbers

Numpy, onnx and onnxruntime only; nothing is imported until it is used. Graphs are ONNX ModelProtos.
"""
