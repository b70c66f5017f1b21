"""Shared memory as the copy engine writes it and the tensor cores read it, by the PTX ISA, byte for byte.

Boxes of 64 bfloat16 columns land in rows of 128 bytes under the 128-byte swizzle (address bits 4-6 are xored with bits
7-9). A descriptor names a start, a leading and a stride offset; canonical layouts (PTX ISA, "Strides" and "Canonical
layouts" of wgmma's matrix descriptor):

  rows along the depth (K-major):       (mn, k) at start + mn % 8 * 128 + mn // 8 * stride + 2 k
  rows along the outer side (MN-major): (mn, k) at start + 2 (mn % 64) + mn // 64 * leading
                                                           + k % 8 * 128 + k // 8 * stride

each then swizzled as an address. The descriptors below are those of wgmma.cuh and ring_attention.cuh.
"""

import numpy as np

SWIZZLE_128 = 1 << 62


def swizzle(address):
    return address ^ (address >> 7 & 7) << 4


def land(memory, base, box):
    """A box [rows, 64] of 16-bit words, by the copy engine, at a multiple of 1024 bytes."""
    assert base % 1024 == 0 and box.shape[1] == 64
    row, column = np.indices(box.shape)
    memory[swizzle(base + row * 128 + column * 2) // 2] = box


def descriptor(address, leading, stride=1024):
    field = lambda x: x >> 4 & 0x3FFF  # noqa: E731
    assert address % 16 == leading % 16 == stride % 16 == 0 and max(address, leading, stride) < 1 << 18
    return SWIZZLE_128 | field(stride) << 32 | field(leading) << 16 | field(address)


def fields(d):
    assert d >> 62 == 1 and d >> 49 & 7 == 0  # 128-byte swizzle, no base offset
    return tuple((d >> at & 0x3FFF) << 4 for at in (0, 16, 32))


def read_depth_rows(memory, d, size):
    """[size, 16], as wgmma reads an operand that is not transposed."""
    start, _, stride = fields(d)
    mn, k = np.indices((size, 16))
    return memory[swizzle(start + mn % 8 * 128 + mn // 8 * stride + 2 * k) // 2]


def read_outer_rows(memory, d, size):
    """[16, size], as wgmma reads an operand that is transposed."""
    start, leading, stride = fields(d)
    k, mn = np.indices((16, size))
    return memory[swizzle(start + mn % 64 * 2 + mn // 64 * leading + k % 8 * 128 + k // 8 * stride) // 2]


def sums(thread, size):
    """Row and column of each of a thread's `size` sums of a 64-row product."""
    e, lane, warp = np.arange(size), thread % 32, thread // 32
    return 16 * warp + lane // 4 + 8 * (e // 2 % 2), 8 * (e // 4) + 2 * (lane % 4) + e % 2


def operand(thread):
    """Row and column of each of a thread's 8 elements (4 registers of 2) of a [64, 16] operand in registers."""
    j, lane, warp = np.arange(8), thread % 32, thread // 32
    return 16 * warp + lane // 4 + 8 * (j // 2 % 2), 8 * (j // 4) + 2 * (lane % 4) + j % 2


def check(tile_keys, stages):
    rng = np.random.default_rng(tile_keys)
    half_tile, half_query = tile_keys * 128, 64 * 128
    memory = np.zeros(232448 // 2, np.uint16)
    query_at = [i * 2 * half_query for i in range(2)]
    tile_at = [2 * 2 * half_query + i * 2 * half_tile for i in range(stages)]
    assert tile_at[-1] + 2 * half_tile + 1024 <= 232448
    queries = [rng.integers(0, 1 << 16, (64, 128), dtype=np.uint16) for _ in range(2)]
    tiles = [rng.integers(0, 1 << 16, (tile_keys, 128), dtype=np.uint16) for _ in range(stages)]
    for at, x, half in [(a, x, half_query) for a, x in zip(query_at, queries, strict=True)] + [
        (a, x, half_tile) for a, x in zip(tile_at, tiles, strict=True)
    ]:
        land(memory, at, x[:, :64])
        land(memory, at + half, x[:, 64:])
    for at, x in zip(query_at, queries, strict=True):  # start_scores, a
        d = descriptor(at, 0)
        for i in range(8):
            got = read_depth_rows(memory, d + (i // 4 * half_query + i % 4 * 32) // 16, 64)
            assert (got == x[:, 16 * i : 16 * i + 16]).all()
    for at, x in zip(tile_at, tiles, strict=True):
        d = descriptor(at, 0)  # start_scores, b: keys
        for i in range(8):
            got = read_depth_rows(memory, d + (i // 4 * half_tile + i % 4 * 32) // 16, tile_keys)
            assert (got == x[:, 16 * i : 16 * i + 16]).all()
        d = descriptor(at, half_tile)  # start_out, b: values
        for i in range(tile_keys // 16):
            got = read_outer_rows(memory, d + i * 16 * 64 * 2 // 16, 128)
            assert (got == x[16 * i : 16 * i + 16]).all()
    # clear_from: whole 16-byte words from row `count` on, in both halves, touch no other row
    for count in (0, 1, 7, 8, 9, tile_keys - 1):
        memory[:] = 1
        words = memory.view(np.uint64).reshape(-1, 2)
        start = tile_at[1] // 16
        for i in range(count * 8, half_tile // 16):
            words[start + i] = words[start + half_tile // 16 + i] = 0
        d = descriptor(tile_at[1], half_tile)
        got = np.concatenate([read_outer_rows(memory, d + i * 128, 128) for i in range(tile_keys // 16)])
        assert (
            (got[:count] == 1).all() and (got[count:] == 0).all() and (memory == 0).sum() == (tile_keys - count) * 128
        )
    # A thread's exponentials, packed in pairs, are its operand of the product with the values.
    for thread in range(128):
        row, column = sums(thread, tile_keys // 2)
        for i in range(tile_keys // 16):
            r, c = operand(thread)
            assert (row[8 * i : 8 * i + 8] == r).all() and (column[8 * i : 8 * i + 8] == 16 * i + c).all()
    # store: element 4 i + 2 r + j is row r of the thread's two, column 8 i + 2 (lane % 4) + j
    for thread in (0, 37, 127):
        row, column = sums(thread, 64)
        for i in range(0, 64, 4):
            for r in range(2):
                assert row[i + 2 * r] == thread // 32 * 16 + thread % 32 // 4 + 8 * r
                assert column[i + 2 * r] == thread % 4 * 2 + 2 * i and column[i + 2 * r + 1] == column[i + 2 * r] + 1
    # mask: element i is column i // 4 * 8 + lane % 4 * 2 + i % 2
    i = np.arange(tile_keys // 2)
    assert (sums(37, tile_keys // 2)[1] == i // 4 * 8 + 37 % 32 % 4 * 2 + i % 2).all()


if __name__ == "__main__":
    for case in ((128, 6), (160, 4), (176, 4), (192, 4)):
        check(*case)
        print("ok", case)
