#!/usr/bin/env python3
"""Tests of check_dump.py: a right dump passes, and a dump that is wrong in one place fails and says where.

    python3 scripts/test_check_dump.py

The dumps are made here, token by token with scalar loops, not with check_dump's functions.
"""

import json
import struct
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import numpy as np

SCRIPT = Path(__file__).with_name("check_dump.py")
RANKS, EXPERTS, TOPK, HIDDEN = 3, 8, 3, 144
EXPERTS_PER_RANK = 3  # ceil(8 / 3)
TOKENS = [5, 0, 4]
DTYPES = {"uint16": "BF16", "float16": "F16", "uint8": "F8_E4M3", "float32": "F32", "uint32": "U32", "int32": "I32"}
ELEMENTS = ("bf16", "f16", "fp8_e4m3", "fp8_e4m3_ue8m0")


def write_safetensors(path, tensors, metadata):
    header, data = {"__metadata__": metadata}, b""
    for name, values in tensors.items():
        raw = values.tobytes()
        header[name] = {
            "dtype": DTYPES[values.dtype.name],
            "shape": list(values.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def to_bf16(value):
    """By the definition: the nearer of the two neighbours, the even one of two equally near."""
    low = struct.unpack("<I", struct.pack("<f", value))[0] >> 16
    below, above = (abs(float(from_bf16(bits)) - float(value)) for bits in (low, low + 1))
    return low if below < above or (below == above and low % 2 == 0) else low + 1


def from_bf16(bits):
    return np.array([int(bits) << 16], np.uint32).view(np.float32)[0]


def from_e4m3(code):
    sign, exponent, mantissa = -1 if code & 128 else 1, code >> 3 & 15, code & 7
    return np.float32(sign * (mantissa / 8 * 2**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)))


def make_dump(element, gate="softmax"):
    """The tensors of each rank, and the metadata of all."""
    random = np.random.default_rng(1)
    fp8 = element.startswith("fp8")
    ranks = []
    for tokens in TOKENS:
        tensors = {}
        if fp8:
            codes = random.integers(0, 256, (tokens, HIDDEN)).astype(np.uint8)
            codes[codes & 127 == 127] = 3
            tensors["x"] = codes
            if element == "fp8_e4m3":
                tensors["x_scales"] = random.uniform(0.001, 0.1, (tokens, 2)).astype(np.float32)
            else:
                # Two groups of channels: the upper half of the one word has no scale.
                low, high = random.integers(110, 130, (2, tokens, 1)).astype(np.uint32)
                tensors["x_scales"] = high << 8 | low
        elif element == "f16":
            tensors["x"] = random.standard_normal((tokens, HIDDEN)).astype(np.float16)
        else:
            values = random.standard_normal(tokens * HIDDEN).astype(np.float32)
            tensors["x"] = np.array([to_bf16(value) for value in values], np.uint16).reshape(tokens, HIDDEN)
        tensors["topk_idx"] = random.integers(-1, EXPERTS, (tokens, TOPK)).astype(np.int32)
        tensors["topk_weights"] = random.uniform(0.1, 1, (tokens, TOPK)).astype(np.float32)
        ranks.append(tensors)
    # A token that goes nowhere, and one that names an expert twice.
    ranks[0]["topk_idx"][1] = -1
    ranks[2]["topk_idx"][0] = [4, 4, 7]
    if gate.startswith("deepseek"):
        for tensors in ranks:
            # Two of the four groups of two experts.
            tensors["topk_idx"][:] = [0, 1, 6]
            tensors["topk_weights"][:] = [0.5, 1.25, 0.75]

    parts = [[[] for _ in range(tokens)] for tokens in TOKENS]
    for rank in range(RANKS):
        received = {name: [] for name in ("x", "scales", "topk_idx", "topk_weights", "source_rank", "source_token")}
        first = EXPERTS_PER_RANK * rank
        per_source, per_expert, outputs = [0] * RANKS, [0] * min(EXPERTS_PER_RANK, EXPERTS - first), []
        for source, tensors in enumerate(ranks):
            for token in range(TOKENS[source]):
                experts, weights = tensors["topk_idx"][token], tensors["topk_weights"][token]
                owned = [
                    slot for slot in range(TOPK) if experts[slot] >= 0 and experts[slot] // EXPERTS_PER_RANK == rank
                ]
                if not owned:
                    continue
                received["x"].append(tensors["x"][token])
                if fp8:
                    received["scales"].append(tensors["x_scales"][token])
                received["topk_idx"].append([experts[slot] - first if slot in owned else -1 for slot in range(TOPK)])
                received["topk_weights"].append([weights[slot] if slot in owned else 0 for slot in range(TOPK)])
                received["source_rank"].append(source)
                received["source_token"].append(token)
                per_source[source] += 1
                for slot in owned:
                    per_expert[experts[slot] - first] += 1
                row = []
                for column in range(HIDDEN):
                    if element == "fp8_e4m3":
                        x = from_e4m3(int(tensors["x"][token, column])) * tensors["x_scales"][token, column // 128]
                    elif fp8:
                        code = int(tensors["x_scales"][token, 0]) >> 8 * (column // 128) & 255
                        x = from_e4m3(int(tensors["x"][token, column])) * np.float32(2.0 ** (code - 127))
                    elif element == "f16":
                        x = np.float32(tensors["x"][token, column])
                    else:
                        x = from_bf16(tensors["x"][token, column])
                    total = np.float32(0)
                    for slot in owned:
                        a = np.float32(1 + experts[slot] % 7 * 0.125)
                        b = np.float32((experts[slot] % 5 - 2.0) * 0.0625)
                        total = total + weights[slot] * (x * a + b)
                    row.append(to_bf16(total))
                outputs.append(row)
                parts[source][token].append(row)
        count = len(outputs)
        ranks[rank].update(
            {
                "recv_x": np.array(received["x"], ranks[rank]["x"].dtype).reshape(count, HIDDEN),
                "recv_topk_idx": np.array(received["topk_idx"], np.int32).reshape(count, TOPK),
                "recv_topk_weights": np.array(received["topk_weights"], np.float32).reshape(count, TOPK),
                "recv_source_rank": np.array(received["source_rank"], np.int32),
                "recv_source_token": np.array(received["source_token"], np.int32),
                "recv_tokens_per_source": np.array(per_source, np.int32),
                "recv_tokens_per_expert": np.array(per_expert, np.int32),
                "expert_out": np.array(outputs, np.uint16).reshape(count, HIDDEN),
            }
        )
        if fp8:
            scales = tensors["x_scales"]
            ranks[rank]["recv_scales"] = np.array(received["scales"], scales.dtype).reshape(count, scales.shape[1])
    for source, tokens in enumerate(TOKENS):
        combined = np.zeros((tokens, HIDDEN), np.uint16)
        for token, rows in enumerate(parts[source]):
            for column in range(HIDDEN if rows else 0):
                total = from_bf16(rows[0][column])
                for row in rows[1:]:
                    total = total + from_bf16(row[column])
                combined[token, column] = to_bf16(total)
        ranks[source]["combined"] = combined
    metadata = {
        "format": "tokenrail-dump-1",
        "ranks": str(RANKS),
        "experts": str(EXPERTS),
        "topk": str(TOPK),
        "hidden": str(HIDDEN),
        "element": element,
        "expert_function": "as in the script",
        "gate": gate,
    }
    return ranks, metadata


DEEPSEEK = "deepseek-v3 experts=8 groups=4 top_groups=2 topk=3 scale=2.5"


class CheckDump(unittest.TestCase):
    def run_script(self, dump, damage=lambda folder: None):
        ranks, metadata = dump
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for rank, tensors in enumerate(ranks):
                write_safetensors(folder / f"rank{rank}.safetensors", tensors, {**metadata, "rank": str(rank)})
            damage(folder)
            return subprocess.run([sys.executable, SCRIPT, folder], check=False, capture_output=True, text=True)

    def assert_fails(self, dump, message, damage=lambda folder: None):
        done = self.run_script(dump, damage)
        self.assertEqual(done.returncode, 1, done.stdout + done.stderr)
        self.assertIn("FAILED: " + message, done.stderr)
        self.assertNotIn("ok:", done.stdout)

    def test_right_dumps_pass(self):
        for dump in (*map(make_dump, ELEMENTS), make_dump("bf16", gate=DEEPSEEK)):
            done = self.run_script(dump)
            self.assertEqual((done.returncode, done.stderr), (0, ""))
            lines = done.stdout.splitlines()
            self.assertEqual(len(lines), RANKS + 1)
            self.assertTrue(lines[-1].startswith("ok: 3 ranks, 8 experts, 9 tokens of 144"))

    def test_one_changed_bit_is_found_in_every_tensor(self):
        for element in ELEMENTS:
            for name in make_dump(element)[0][0]:
                if not name.startswith("recv_") and name not in ("expert_out", "combined"):
                    continue
                with self.subTest(name, element=element):
                    dump = make_dump(element)
                    values = dump[0][2][name]
                    values.view(np.uint8).reshape(-1)[-values.itemsize] ^= 1
                    column = f", column {values.shape[1] - 1}" if values.ndim == 2 else ""
                    place = f"rank 2: {name} differs at row {len(values) - 1}{column}:"
                    self.assert_fails(dump, place)

    def test_changed_input_is_found_in_what_was_received(self):
        dump = make_dump("bf16")
        source, token = dump[0][1]["recv_source_rank"][0], dump[0][1]["recv_source_token"][0]
        dump[0][source]["x"][token, 7] ^= 1
        first = min(
            rank for rank in range(RANKS) if (dump[0][source]["topk_idx"][token] // EXPERTS_PER_RANK == rank).any()
        )
        self.assert_fails(dump, f"rank {first}: recv_x differs at row")

    def test_lost_and_swapped_rows(self):
        per_row = [name for name in make_dump("fp8_e4m3")[0][0] if name.startswith("recv_") and "_per_" not in name]
        lost, swapped = make_dump("fp8_e4m3"), make_dump("fp8_e4m3")
        for name in [*per_row, "expert_out"]:
            lost[0][1][name] = lost[0][1][name][:-1]
            swapped[0][1][name][[0, 1]] = swapped[0][1][name][[1, 0]]
        self.assert_fails(lost, "rank 1: recv_x has")
        self.assert_fails(swapped, "rank 1: recv_x differs at row 0, column 0")

    def test_rounding_twice_is_found(self):
        dump = make_dump("bf16")
        # As from sums kept in bf16, or in another order: one unit in the last place.
        dump[0][0]["combined"][0, 100] += 1
        self.assert_fails(dump, "rank 0: combined differs at row 0, column 100")

    def test_negative_zero_is_not_zero(self):
        dump = make_dump("bf16")
        self.assertEqual(dump[0][0]["combined"][1, 3], 0)
        dump[0][0]["combined"][1, 3] = 0x8000
        self.assert_fails(dump, "rank 0: combined differs at row 1, column 3: 0x8000, expected 0x0")

    def test_scales_of_no_channel_are_0(self):
        dump = make_dump("fp8_e4m3_ue8m0")
        dump[0][2]["x_scales"][1, 0] |= 1 << 16
        self.assert_fails(dump, "rank 2: x_scales row 1 has a scale for group 2, of 2")

    def test_gate_limits(self):
        dump = make_dump("bf16", gate=DEEPSEEK)
        dump[0][2]["topk_idx"][3] = [0, 2, 4]
        self.assert_fails(dump, "rank 2: topk_idx row 3 has experts of 3 groups")
        dump = make_dump("bf16", gate=DEEPSEEK)
        dump[0][0]["topk_weights"][4, 1] += 0.001
        self.assert_fails(dump, "rank 0: topk_weights row 4 sums to 2.501000, not 2.5")

    def test_experts_that_do_not_exist(self):
        for value in (-2, EXPERTS):
            dump = make_dump("bf16")
            dump[0][0]["topk_idx"][2, 1] = value
            self.assert_fails(dump, f"rank 0: topk_idx at row 2, column 1 is {value}")

    def test_wrong_shapes_and_metadata(self):
        dump = make_dump("bf16")
        dump[0][0]["x"] = dump[0][0]["x"][:, :-1]
        self.assert_fails(dump, "rank 0: x is BF16 [5, 143], expected BF16 [5, 144]")
        dump = make_dump("fp8_e4m3")
        del dump[0][1]["recv_scales"]
        self.assert_fails(dump, "rank 1: recv_scales is missing")
        for name, value, message in (
            ("format", "other", "rank0.safetensors: format is 'other'"),
            ("ranks", "0", "metadata ranks is '0'"),
            ("hidden", "x", "metadata hidden is 'x'"),
            ("element", "f64", "element is 'f64'"),
            ("gate", "deepseek-v3 groups=0", "metadata gate is 'deepseek-v3 groups=0'"),
        ):
            ranks, metadata = make_dump("bf16")
            self.assert_fails((ranks, {**metadata, name: value}), message)

    def test_missing_and_broken_files(self):
        dump = make_dump("bf16")
        self.assert_fails(dump, "3 ranks, but missing", lambda folder: (folder / "rank1.safetensors").unlink())
        for kept in (slice(2), slice(-100)):

            def cut(folder, kept=kept):
                path = folder / "rank2.safetensors"
                path.write_bytes(path.read_bytes()[kept])

            self.assert_fails(dump, "rank2.safetensors: not a safetensors file", cut)


if __name__ == "__main__":
    unittest.main()
