"""What stands around the network in an exported graph, in ONNX operators: the protocol from uint8 images to the
network's input, and from its logits to the class of every pixel, a row after the other.

Needs onnxscript (optional), whose `@script` compiles these functions; they are never run as Python. Numbers are
tensors of one dimension, and element types ONNX's: 1 float32, 2 uint8, 6 int32, 7 int64, 11 float64.
"""

from onnxscript import FLOAT, INT64, UINT8, graph, script
from onnxscript import opset20 as op

OPSET = 20


@script()
def resized(image: UINT8[...], size: INT64[...]) -> UINT8[...]:
    """The first of an image's four axes brought to `size` (1,), bilinearly and antialiased.

    Bit for bit what torchvision makes of uint8 on a CPU, whose weights are integers of 15 bits. Source: aten/src/ATen/
    native/cpu/UpSampleKernel.cpp, `compute_index_ranges_int16_weights` and `_compute_indices_min_size_weights_aa`.
    """
    zero, one = op.Constant(value_ints=[0]), op.Constant(value_ints=[1])
    zero_d, half_d, one_d = op.Cast(zero, to=11), op.Constant(value_floats=[0.5]), op.Cast(one, to=11)
    half_d = op.Cast(half_d, to=11)
    two_d = one_d + one_d
    length = op.Shape(image, start=0, end=1)
    scale = op.Cast(length, to=11) / op.Cast(size, to=11)
    support = op.Max(scale, one_d)
    center = (op.Cast(op.Range(0, op.Squeeze(size), 1), to=11) + half_d) * scale
    first = op.Max(op.Cast(center - support + half_d, to=7), zero)
    stop = op.Min(op.Cast(center + support + half_d, to=7), length)
    taps = op.ReduceMax(stop - first, keepdims=0)
    rows = op.Unsqueeze(first, one) + op.Unsqueeze(op.Range(0, taps, 1), zero)  # (size, taps)
    distance = op.Abs(op.Cast(rows, to=11) - op.Unsqueeze(center, one) + half_d) / support
    weights = op.Where(rows < op.Unsqueeze(stop, one), op.Max(one_d - distance, zero_d), zero_d)
    weights = weights / op.ReduceSum(weights, one)
    # As many binary digits as the largest weight leaves room for.
    powers = op.Pow(two_d, op.Cast(op.Range(1, 23, 1), to=11))
    fits = op.ReduceMax(weights) * powers + half_d < op.Cast(op.Constant(value_ints=[32768]), to=11)
    unit = op.Pow(two_d, op.ReduceSum(op.Cast(fits, to=11), keepdims=0))
    whole = op.Transpose(op.Cast(weights * unit + half_d, to=6), perm=[1, 0])  # (taps, size)
    rows = op.Transpose(op.Min(rows, length - one), perm=[1, 0])
    unit = op.Cast(unit, to=6)
    axes = op.Constant(value_ints=[1, 2, 3])
    total = op.Cast(op.Gather(image, op.Gather(rows, 0), axis=0), to=6) * op.Unsqueeze(op.Gather(whole, 0), axes)
    for k in range(taps - 1):
        pixels = op.Cast(op.Gather(image, op.Gather(rows, k + 1), axis=0), to=6)
        total = total + pixels * op.Unsqueeze(op.Gather(whole, k + 1), axes)
    return op.Cast((total + op.Cast(op.Cast(unit, to=11) / two_d, to=6)) / unit, to=2)


@script()
def protocol_input(
    image: UINT8[...],
    limits: INT64[...],
    divisor: INT64[...],
    least: INT64[...],
    channels: INT64[...],
    mean: FLOAT[...],
    std: FLOAT[...],
) -> FLOAT[...]:
    """Images (B, H, W, C) → what the network is shown (B, C, h, w): `EvaluationProtocol.input_size` and `normalize`.

    limits (2,): of the short and the long side. channels (C,): their order for the network.
    """
    one = op.Constant(value_ints=[1])
    sides = op.Shape(image, start=1, end=3)
    exact = op.Cast(sides, to=11)
    shortest, longest = op.ReduceMin(exact), op.ReduceMax(exact)
    factor = op.ReduceMin(op.Cast(limits, to=11) / op.Concat(shortest, longest, axis=0))
    half = op.Cast(op.Constant(value_floats=[0.5]), to=11)
    size = op.Cast(exact * factor + half, to=7)
    size = op.Max((size + divisor - one) / divisor * divisor, least)
    height, width = op.Split(size, num_outputs=2)
    # Columns first, as torchvision does; gathering along the first axis copies whole rows.
    columns = resized(op.Transpose(image, perm=[2, 0, 1, 3]), width)  # (w, B, H, C)
    shown = resized(op.Transpose(columns, perm=[2, 1, 0, 3]), height)  # (h, B, w, C)
    pixels = op.Cast(op.Gather(op.Transpose(shown, perm=[1, 3, 0, 2]), channels, axis=1), to=1)
    axes = op.Constant(value_ints=[1, 2])
    return (pixels / op.Constant(value_floats=[255.0]) - op.Unsqueeze(mean, axes)) / op.Unsqueeze(std, axes)


@script()
def positions(low_size: INT64[...], size: INT64[...]):
    """Of bilinear interpolation, `align_corners=False`, along one axis: lower index, and how far on the way to the
    next, as `torch.nn.functional.interpolate` works them out."""
    half, zero = op.Constant(value_floats=[0.5]), op.Constant(value_floats=[0.0])
    ratio = op.Cast(op.Cast(low_size, to=11) / op.Cast(size, to=11), to=1)
    place = op.Max((op.Cast(op.Range(0, op.Squeeze(size), 1), to=1) + half) * ratio - half, zero)
    low = op.Min(op.Cast(place, to=7), low_size - op.Constant(value_ints=[1]))
    return low, place - op.Cast(low, to=1)


@script()
def line_of_pixels(by_row, low, high, weight, low_column, next_column, fraction):
    """Logits (B, W, C) of a line of pixels, from those of two rows, (h, B, w, C), and of two columns."""
    one = op.Constant(value_floats=[1.0])
    line = op.Gather(by_row, low, axis=0) * (one - weight) + op.Gather(by_row, high, axis=0) * weight
    return op.Gather(line, low_column, axis=1) * (one - fraction) + op.Gather(line, next_column, axis=1) * fraction


@script()
def grid(logits: FLOAT[None, None, None, None], image: UINT8[...]):
    """Where the pixels of images (B, H, W, …) lie among logits (B, C, h, w): these as (h, B, w, C); of rows lower
    index, next one and how far on the way to it, (H,); the same of columns, (W,), the last (W, 1)."""
    one = op.Constant(value_ints=[1])
    by_row = op.Transpose(logits, perm=[2, 0, 3, 1])  # (h, B, w, C)
    low_row, row_fraction = positions(op.Shape(by_row, start=0, end=1), op.Shape(image, start=1, end=2))
    low_column, fraction = positions(op.Shape(by_row, start=2, end=3), op.Shape(image, start=2, end=3))
    next_row = op.Min(low_row + one, op.Shape(by_row, start=0, end=1) - one)
    next_column = op.Min(low_column + one, op.Shape(by_row, start=2, end=3) - one)
    return by_row, low_row, next_row, row_fraction, low_column, next_column, op.Unsqueeze(fraction, one)


@script()
def class_ids(logits: FLOAT[None, None, None, None], image: UINT8[...]) -> UINT8[...]:
    """Logits (B, C, h, w) → the most likely class of every pixel of images (B, H, W, …), (B, H, W)."""
    by_row, low_row, next_row, row_fraction, low_column, next_column, fraction = grid(logits, image)

    @graph()
    def predict_line(low, high, weight):
        line = line_of_pixels(by_row, low, high, weight, low_column, next_column, fraction)
        return op.Cast(op.ArgMax(line, axis=-1, keepdims=0), to=2)

    lines = op.Scan(low_row, next_row, row_fraction, body=predict_line, num_scan_inputs=3)
    return op.Transpose(lines, perm=[1, 0, 2])


@script()
def class_ids_and_confidence(
    logits: FLOAT[None, None, None, None], image: UINT8[...], shift: FLOAT[...], temperature: FLOAT[...]
):
    """As `class_ids`, and how likely that class is, uint8 (B, H, W), 255 for certainty.

    shift (C,): what was added to the logits to move the boundary between two classes. temperature (1,): what they are
    divided by for the probability.
    """
    by_row, low_row, next_row, row_fraction, low_column, next_column, fraction = grid(logits, image)
    moved_by, divisor = op.Identity(shift), op.Identity(temperature)

    @graph()
    def predict_line(low, high, weight):
        line = line_of_pixels(by_row, low, high, weight, low_column, next_column, fraction)
        found = op.ArgMax(line, axis=-1, keepdims=1)
        likely = op.GatherElements(op.Softmax((line - moved_by) / divisor, axis=-1), found, axis=-1)
        level = op.Squeeze(op.Round(likely * op.Constant(value_floats=[255.0])), [-1])
        return op.Cast(op.Squeeze(found, [-1]), to=2), op.Cast(level, to=2)

    ids, levels = op.Scan(low_row, next_row, row_fraction, body=predict_line, num_scan_inputs=3)
    return op.Transpose(ids, perm=[1, 0, 2]), op.Transpose(levels, perm=[1, 0, 2])
