"""Quantization of ONNX graphs after training: what a recipe says, ranges of activations, and the int8 graph.

    recipe.py    what is done to a float graph on its way to int8, as JSON
    grid.py      a scale, a zero point and a number of bits: what a tensor is rounded to
    graph.py     which nodes run on whole numbers, which of their inputs are weights; readers and makers
    insert.py    grids into a graph: QuantizeLinear and DequantizeLinear around what runs on whole numbers
    ranges.py    what activations take on images, and the grid that each gets
    seams.py     values whose channels can be scaled; equalise.py and smooth.py choose by how much
    rounding.py  weights up or down, learned per layer; bias.py: means taken off biases
    twins.py     each layer beside its int8 twin; switches.py: a switch for each rounding;
                 sensitivity.py: what each layer costs
    clean.py     a graph cleaned up, and compared
    processors.py, saturate.py    CPUs by how they add products, and those without VNNI emulated

Numpy, onnx and onnxruntime only; nothing is imported until it is used. Graphs are ONNX ModelProtos.
"""
