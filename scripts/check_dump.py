#!/usr/bin/env python3
"""Checks what `tokenrail run --dump DIR` wrote, independently of tokenrail.

    pip install numpy
    python3 scripts/check_dump.py DIR

DIR has one `rank<i>.safetensors` a rank. From every rank's tokens and routing (`x`, `x_scales`, `topk_idx`,
`topk_weights`) the script computes what each rank must have received, what its experts must have made of that, and
what combine must have brought back, and demands the same bits. It ends with status 1 at the first difference and
names tensor, rank, row and column.
"""

import json
import re
import struct
import sys
from pathlib import Path

import numpy as np

FORMAT = "tokenrail-dump-1"
SCALE_GROUP = 128
# Formats that numpy does not have are held as their bits.
DTYPES = {
    "BF16": np.uint16,
    "F16": np.uint16,
    "F8_E4M3": np.uint8,
    "F32": np.float32,
    "U32": np.uint32,
    "I32": np.int32,
}
# Types of the rows and, where they have some, of their scales.
ELEMENTS = {
    "bf16": ("BF16", None),
    "f16": ("F16", None),
    "fp8_e4m3": ("F8_E4M3", "F32"),
    "fp8_e4m3_ue8m0": ("F8_E4M3", "U32"),
}


class Mismatch(Exception):
    """The dump is not what it must be."""


def read_safetensors(path):
    """The tensors of a file, by name, each with its format's name; and the file's metadata."""
    data = path.read_bytes()
    try:
        (length,) = struct.unpack_from("<Q", data)
        header = json.loads(data[8 : 8 + length])
        metadata = header.pop("__metadata__", {})
        tensors = {}
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            values = np.frombuffer(data[8 + length + begin : 8 + length + end], DTYPES[entry["dtype"]])
            tensors[name] = (entry["dtype"], values.reshape(entry["shape"]))
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Mismatch(f"{path.name}: not a safetensors file of a dump: {error!r}") from error
    return tensors, metadata


def bf16_to_f32(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def f16_to_f32(bits):
    return bits.view(np.float16).astype(np.float32)


def ue8m0_bytes(words):
    """The bytes of packed scales, the lowest first."""
    return np.ascontiguousarray(words, "<u4").view(np.uint8).reshape(len(words), 4 * words.shape[1])


def ue8m0_to_f32(codes):
    """The powers of two that bytes stand for; 255 is NaN."""
    powers = np.ldexp(np.float32(1), codes.astype(np.int32) - 127)
    return np.where(codes == 255, np.float32(np.nan), powers).astype(np.float32)


def f32_to_bf16(values):
    """To nearest, ties to even; NaN becomes 0x7fff."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(values), 0x7FFF, rounded).astype(np.uint16)


def e4m3_table():
    """The value of each FP8 e4m3 code (OCP 8-bit Floating Point Specification 1.0)."""
    code = np.arange(256)
    exponent, mantissa = code >> 3 & 15, code & 7
    value = np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent - 10.0))
    value[code & 0x7F == 0x7F] = np.nan
    return np.where(code & 0x80, -value, value).astype(np.float32)


E4M3 = e4m3_table()


class Dump:
    """The files of all ranks, read and checked for shape."""

    def __init__(self, folder):
        first = folder / "rank0.safetensors"
        if not first.is_file():
            raise Mismatch(f"{first}: no such file")
        self.metadata = read_safetensors(first)[1]
        if self.metadata.get("format") != FORMAT:
            raise Mismatch(f"{first.name}: format is {self.metadata.get('format')!r}, expected {FORMAT!r}")
        self.ranks, self.experts, self.topk, self.hidden = (
            self.positive(name) for name in ("ranks", "experts", "topk", "hidden")
        )
        self.element = self.metadata.get("element")
        if self.element not in ELEMENTS:
            raise Mismatch(f"element is {self.element!r}, expected one of {', '.join(ELEMENTS)}")
        self.x_type, self.scale_type = ELEMENTS[self.element]
        self.groups = -(-self.hidden // SCALE_GROUP)
        self.scale_words = -(-self.groups // 4) if self.scale_type == "U32" else self.groups
        self.experts_per_rank = -(-self.experts // self.ranks)
        expected = {f"rank{rank}.safetensors" for rank in range(self.ranks)}
        found = {path.name for path in folder.glob("rank*.safetensors")}
        if found != expected:
            missing, extra = sorted(expected - found), sorted(found - expected)
            raise Mismatch(f"{self.ranks} ranks, but missing {missing}, extra {extra}")
        self.tensors = [self.read(folder, rank) for rank in range(self.ranks)]

    def positive(self, name):
        text = self.metadata.get(name, "")
        if not re.fullmatch("[1-9][0-9]{0,8}", text):
            raise Mismatch(f"metadata {name} is {text!r}, expected a positive number")
        return int(text)

    def experts_of(self, rank):
        start = min(rank * self.experts_per_rank, self.experts)
        return range(start, min(start + self.experts_per_rank, self.experts))

    def read(self, folder, rank):
        tensors, metadata = read_safetensors(folder / f"rank{rank}.safetensors")
        for name, value in {**self.metadata, "rank": str(rank)}.items():
            if metadata.get(name) != value:
                raise Mismatch(f"rank {rank}: metadata {name} is {metadata.get(name)!r}, expected {value!r}")

        tokens, received = (
            len(tensors[name][1]) if name in tensors and tensors[name][1].ndim else 0
            for name in ("topk_idx", "recv_topk_idx")
        )
        expected = {
            "x": (self.x_type, (tokens, self.hidden)),
            "topk_idx": ("I32", (tokens, self.topk)),
            "topk_weights": ("F32", (tokens, self.topk)),
            "recv_x": (self.x_type, (received, self.hidden)),
            "recv_topk_idx": ("I32", (received, self.topk)),
            "recv_topk_weights": ("F32", (received, self.topk)),
            "recv_source_rank": ("I32", (received,)),
            "recv_source_token": ("I32", (received,)),
            "recv_tokens_per_source": ("I32", (self.ranks,)),
            "recv_tokens_per_expert": ("I32", (len(self.experts_of(rank)),)),
            "expert_out": ("BF16", (received, self.hidden)),
            "combined": ("BF16", (tokens, self.hidden)),
        }
        if self.scale_type:
            expected["x_scales"] = (self.scale_type, (tokens, self.scale_words))
            expected["recv_scales"] = (self.scale_type, (received, self.scale_words))
        for name, want in expected.items():
            if name not in tensors:
                raise Mismatch(f"rank {rank}: {name} is missing")
            have = (tensors[name][0], tensors[name][1].shape)
            if have != want:
                raise Mismatch(f"rank {rank}: {name} is {have[0]} {list(have[1])}, expected {want[0]} {list(want[1])}")
        if extra := sorted(set(tensors) - set(expected)):
            raise Mismatch(f"rank {rank}: unexpected tensors {extra}")
        return {name: values for name, (_, values) in tensors.items()}


def demand_equal(name, rank, found, expected):
    """Bit for bit."""
    if found.shape != expected.shape:
        raise Mismatch(f"rank {rank}: {name} has {len(found)} rows, expected {len(expected)}")
    as_bits = f"u{expected.itemsize}"
    differs = np.argwhere(found.view(as_bits) != expected.view(as_bits))
    if len(differs):
        at = tuple(differs[0])
        place = f"row {at[0]}" + (f", column {at[1]}" if len(at) > 1 else "")
        # Unsigned numbers stand for bf16, f16, e4m3 and packed scales.
        shown = [hex(value) if value.dtype.kind == "u" else str(value) for value in (found[at], expected[at])]
        raise Mismatch(
            f"rank {rank}: {name} differs at {place}: {shown[0]}, expected {shown[1]}; "
            f"{len(differs)} of {found.size} elements differ"
        )


def check_routing(dump, rank):
    """Ids in range, and the limits of the DeepSeek-V3 gate."""
    idx, weights = dump.tensors[rank]["topk_idx"], dump.tensors[rank]["topk_weights"]
    wrong = np.argwhere((idx < -1) | (idx >= dump.experts))
    if len(wrong):
        row, column = wrong[0]
        raise Mismatch(f"rank {rank}: topk_idx at row {row}, column {column} is {idx[row, column]}: no such expert")

    gate = dump.metadata.get("gate", "")
    if not gate.startswith("deepseek-v3"):
        return
    setting = {"groups": "8", "top_groups": "4", "scale": "2.5", **dict(re.findall(r"(\w+)=([0-9.]+)", gate))}
    try:
        groups, top_groups, scale = int(setting["groups"]), int(setting["top_groups"]), float(setting["scale"])
        group_size = dump.experts // groups
        group_of = idx // group_size
    except (ValueError, ZeroDivisionError) as error:
        raise Mismatch(f"metadata gate is {gate!r}: {error}") from error
    used = sum(((idx >= 0) & (group_of == group)).any(axis=1).astype(int) for group in range(groups))
    for row in np.flatnonzero(used > top_groups)[:1]:
        raise Mismatch(f"rank {rank}: topk_idx row {row} has experts of {used[row]} groups, not at most {top_groups}")
    sums = weights.sum(axis=1, dtype=np.float64)
    # A token with emptied slots may have lost some of its weight.
    whole = (idx >= 0).all(axis=1)
    for row in np.flatnonzero(whole & ~(abs(sums - scale) <= 1e-5))[:1]:
        raise Mismatch(f"rank {rank}: topk_weights row {row} sums to {sums[row]:.6f}, not {scale}")


def token_goes_to(dump, source, rank):
    """For each token of `source`, whether one of its experts is on `rank`."""
    idx = dump.tensors[source]["topk_idx"]
    return ((idx >= 0) & (idx // dump.experts_per_rank == rank)).any(axis=1)


def expected_received(dump, rank):
    """What `rank` must have received: by source rank, then by token."""
    own = dump.experts_of(rank)
    tokens = [np.flatnonzero(token_goes_to(dump, source, rank)) for source in range(dump.ranks)]

    def gather(name):
        return np.concatenate([dump.tensors[source][name][part] for source, part in enumerate(tokens)])

    idx = gather("topk_idx")
    inside = (idx >= own.start) & (idx < own.stop)
    counts = np.array([len(part) for part in tokens], np.int32)
    received = {
        "recv_x": gather("x"),
        "recv_topk_idx": np.where(inside, idx - own.start, -1).astype(np.int32),
        "recv_topk_weights": np.where(inside, gather("topk_weights"), np.float32(0)),
        "recv_source_rank": np.repeat(np.arange(dump.ranks, dtype=np.int32), counts),
        "recv_source_token": np.concatenate(tokens).astype(np.int32),
        "recv_tokens_per_source": counts,
        "recv_tokens_per_expert": np.bincount(idx[inside] - own.start, minlength=len(own)).astype(np.int32),
    }
    if dump.scale_type:
        received["recv_scales"] = gather("x_scales")
    return received


def check_scales(dump, rank):
    """Bytes of packed scales that no channel has are 0."""
    if dump.scale_type != "U32":
        return
    for row, column in np.argwhere(ue8m0_bytes(dump.tensors[rank]["x_scales"])[:, dump.groups :])[:1]:
        raise Mismatch(f"rank {rank}: x_scales row {row} has a scale for group {dump.groups + column}, of {dump.groups}")


def row_values(dump, rows, scales):
    """The elements of rows as f32."""
    if dump.x_type == "BF16":
        return bf16_to_f32(rows)
    if dump.x_type == "F16":
        return f16_to_f32(rows)
    if dump.scale_type == "U32":
        scales = ue8m0_to_f32(ue8m0_bytes(scales)[:, : dump.groups])
    return E4M3[rows] * np.repeat(scales, SCALE_GROUP, axis=1)[:, : dump.hidden]


def expected_outputs(dump, rank, received):
    """Per row the sum over its slots, in slot order, of weight * (x * a(e) + b(e)); each operation rounded to f32."""
    x = row_values(dump, received["recv_x"], received.get("recv_scales"))
    total = np.zeros_like(x)
    for slot in range(dump.topk):
        local = received["recv_topk_idx"][:, slot]
        rows = np.flatnonzero(local >= 0)
        expert = local[rows] + dump.experts_of(rank).start
        a = (1 + expert % 7 / 8).astype(np.float32)[:, None]
        b = ((expert % 5 - 2) / 16).astype(np.float32)[:, None]
        weight = received["recv_topk_weights"][rows, slot, None]
        total[rows] += weight * (x[rows] * a + b)
    return f32_to_bf16(total)


def expected_combined(dump, source, outputs):
    """The rows of each token, summed in f32 by ascending rank from the first on, rounded once."""
    tokens = len(dump.tensors[source]["topk_idx"])
    total = np.zeros((tokens, dump.hidden), np.float32)
    seen = np.zeros(tokens, bool)
    for rank in range(dump.ranks):
        before = sum(token_goes_to(dump, earlier, rank).sum() for earlier in range(source))
        here = token_goes_to(dump, source, rank)
        rows = bf16_to_f32(outputs[rank][before : before + here.sum()])
        again = seen[here, None]
        total[here] = np.where(again, total[here] + rows, rows)
        seen |= here
    return f32_to_bf16(total)


def check(folder):
    """Checks a dump, printing one line a rank.

    Raises Mismatch at the first difference.
    """
    dump = Dump(folder)
    outputs = []
    for rank in range(dump.ranks):
        check_routing(dump, rank)
        check_scales(dump, rank)
    for rank in range(dump.ranks):
        received = expected_received(dump, rank)
        for name, expected in received.items():
            demand_equal(name, rank, dump.tensors[rank][name], expected)
        outputs.append(expected_outputs(dump, rank, received))
        demand_equal("expert_out", rank, dump.tensors[rank]["expert_out"], outputs[rank])
    for rank in range(dump.ranks):
        demand_equal("combined", rank, dump.tensors[rank]["combined"], expected_combined(dump, rank, outputs))
        tokens, rows = len(dump.tensors[rank]["x"]), len(outputs[rank])
        print(f"rank {rank}: {tokens} tokens sent and combined, {rows} rows received: same bits")
    tokens = sum(len(tensors["x"]) for tensors in dump.tensors)
    print(f"ok: {dump.ranks} ranks, {dump.experts} experts, {tokens} tokens of {dump.hidden} {dump.element}")


def main():
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    # NaN and overflow are data here.
    np.seterr(all="ignore")
    try:
        check(Path(sys.argv[1]))
    except (Mismatch, OSError) as error:
        sys.exit(f"FAILED: {error}")


if __name__ == "__main__":
    main()
