"""Names of ATen operators by kind, without overloads: what `rules/` gives one rule to each kind."""

SAME = """
relu relu6 silu gelu elu selu celu hardswish hardsigmoid hardtanh leaky_relu sigmoid tanh softplus
mish log_sigmoid logit exp exp2 log log2 log1p expm1 sqrt rsqrt abs neg sign square reciprocal sin
cos tan erf floor ceil round clamp clamp_min clamp_max clone contiguous detach alias to _to_copy
dropout feature_dropout alpha_dropout lift_fresh_copy softmax _softmax log_softmax _log_softmax
logical_not bitwise_not threshold softsign hardshrink softshrink tanhshrink nan_to_num isnan
zeros_like ones_like full_like rand_like type_as _safe_softmax silu_ relu_ hardswish_ detach_
_assert_tensor_metadata positive empty_like fill zero to_copy
""".split()  # noqa: SIM905
ELEMENTWISE = """
add sub mul div rsub pow maximum minimum where masked_fill eq ne lt le gt ge logical_and logical_or
addcmul addcdiv lerp prelu fmod remainder atan2 copysign bitwise_and bitwise_or __and__ __or__ copy
""".split()  # noqa: SIM905
REDUCE = """
mean sum amax amin var std var_mean prod logsumexp norm linalg_vector_norm any all
""".split()  # noqa: SIM905
POOL = """
max_pool1d max_pool2d max_pool3d max_pool2d_with_indices avg_pool1d avg_pool2d avg_pool3d
adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d adaptive_max_pool2d
upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_bilinear2d upsample_bicubic2d
_upsample_bilinear2d_aa _upsample_bicubic2d_aa upsample_trilinear3d _upsample_nearest_exact2d
""".split()  # noqa: SIM905
VIEW = """
view reshape _unsafe_view flatten unflatten squeeze unsqueeze view_as reshape_as
""".split()  # noqa: SIM905
ORDERED = ("norm", "linalg_vector_norm")
"""Reductions whose first argument is an order; the axes come after it."""
POSITIONAL = """
argmax argmin cumsum cumprod tril triu
""".split()  # noqa: SIM905
TAKE = """
index_select gather take_along_dim
""".split()  # noqa: SIM905
CONSTANT = """
arange zeros ones full linspace new_zeros new_ones new_full new_empty empty scalar_tensor eye rand
randn
""".split()  # noqa: SIM905
BATCH_NORM = """
batch_norm instance_norm _native_batch_norm_legit_no_training _native_batch_norm_legit
_native_batch_norm_legit_functional native_batch_norm
""".split()  # noqa: SIM905
CONV = """
conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution
""".split()  # noqa: SIM905
