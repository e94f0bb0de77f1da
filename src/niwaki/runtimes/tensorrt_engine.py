"""The GPU side of TensorRT: an engine built from an ONNX file, and run on numpy arrays. Needs a GPU to run.

Shape letters: N images, H W pixels, C channels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt


def build(
    trt: Any, data: bytes, *, half: bool, batches: tuple[int, int, int]
) -> tuple[Any, list[int], list[int]]:
    """(engine, [H, W, C], [K] or [K, H, W]) of an ONNX file.

    Raises:
        RuntimeError: TensorRT does not take the file; the message holds its reason.
    """
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(data):
        raise RuntimeError(str(parser.get_error(0)) if parser.num_errors else "it cannot be parsed")
    image, out = network.get_input(0), network.get_output(0)
    sizes = [int(n) for n in image.shape[1:]]
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    profile.set_shape(image.name, *((count, *sizes) for count in batches))
    config.add_optimization_profile(profile)
    if half:
        config.set_flag(trt.BuilderFlag.FP16)
    if any(layer.type == trt.LayerType.QUANTIZE for layer in map(network.get_layer, range(network.num_layers))):
        config.set_flag(trt.BuilderFlag.INT8)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise RuntimeError("no engine could be built")
    return trt.Runtime(logger).deserialize_cuda_engine(plan), sizes, [int(n) for n in out.shape[1:]]


def runner(
    trt: Any, cuda: Any, engine: Any, answer: list[int]
) -> Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]:
    """One call of an engine: uint8 `[N, H, W, C]` to float32 `[N, K]` or `[N, K, H, W]`, copied to the GPU and
    back."""
    context = engine.create_execution_context()
    stream = _done(cuda.cudaStreamCreate())
    names = [engine.get_tensor_name(k) for k in range(engine.num_io_tensors)]
    image, out = sorted(names, key=lambda name: engine.get_tensor_mode(name) != trt.TensorIOMode.INPUT)
    to, back = cuda.cudaMemcpyKind.cudaMemcpyHostToDevice, cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost

    def run(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        found = np.empty((len(images), *answer), np.float32)
        held = [_done(cuda.cudaMalloc(array.nbytes)) for array in (images, found)]
        try:
            _done(cuda.cudaMemcpyAsync(held[0], images.ctypes.data, images.nbytes, to, stream))
            context.set_input_shape(image, images.shape)
            context.set_tensor_address(image, int(held[0]))
            context.set_tensor_address(out, int(held[1]))
            if not context.execute_async_v3(stream):
                raise RuntimeError("the engine did not run")
            _done(cuda.cudaMemcpyAsync(found.ctypes.data, held[1], found.nbytes, back, stream))
            _done(cuda.cudaStreamSynchronize(stream))
        finally:
            for place in held:
                cuda.cudaFree(place)
        return found

    return run


def _done(answer: tuple[Any, ...]) -> Any:
    """What a CUDA call gives; raises RuntimeError where it failed."""
    if int(answer[0]):
        raise RuntimeError(f"CUDA: {answer[0]}")
    return answer[1] if len(answer) > 1 else None
