// Rows on their way to other nodes, without tags: device/src/low_latency/far.rs.
#pragma once
#include "layout.cuh"
#include "packet.cuh"

namespace low_latency {
namespace far {

// Where a row's parts begin.
struct Places {
    u32 cells;
    Address fifths;
    Address groups;

    DEVICE Places(Address row, const Fill &fill, u32 hidden)
        : cells(fill.cells(hidden)), fifths(row.offset(16 * (u64)cells)),
          groups(fifths.offset(fill.fifth_bytes(hidden))) {}
};

// The cell of this lane in a plane of a tile.
DEVICE u32 cell_of(u32 tile, u32 plane) { return tile * TILE_CELLS + 32 * plane + thread::lane(); }

// The word of this lane's 128 channels in a plane of a tile.
DEVICE u32 group_of(u32 tile, u32 plane) { return (3 * tile + plane) * 4 + thread::lane(); }

// Writes a tile of a row, a warp together.
template <class F>
DEVICE void write_tile(Address row, const Fill &fill, u32 hidden, u32 tile, const Tile &made) {
    Places places(row, fill, hidden);
#pragma unroll
    for (u32 plane = 0; plane < 3; plane++) {
        u32 cell = cell_of(tile, plane);
        if (cell < places.cells) {
            Quad quad{{made.words[0][plane], made.words[1][plane], made.words[2][plane], made.words[3][plane]}};
            mem::store_quad(row.offset(16 * (u64)cell), quad);
            if (F::WORDS == 5) mem::store_u32(places.fifths.word(cell), made.words[4][plane]);
        }
        if (F::GROUPED && thread::lane() < 4) {
            mem::store_u32(places.groups.word(group_of(tile, plane)), made.groups[plane]);
        }
    }
}

// Reads a tile of a row that has arrived, a warp together.
template <class F>
DEVICE Tile read_tile(Address row, const Fill &fill, u32 hidden, u32 tile) {
    Places places(row, fill, hidden);
    Tile read{};
#pragma unroll
    for (u32 plane = 0; plane < 3; plane++) {
        u32 cell = cell_of(tile, plane);
        if (cell < places.cells) {
            Quad quad = mem::load_quad(row.offset(16 * (u64)cell));
#pragma unroll
            for (u32 word = 0; word < 4; word++) read.words[word][plane] = quad.words[word];
            if (F::WORDS == 5) read.words[4][plane] = mem::load_u32(places.fifths.word(cell));
        }
        if (F::GROUPED && thread::lane() < 4) {
            read.groups[plane] = mem::load_u32(places.groups.word(group_of(tile, plane)));
        }
    }
    return read;
}

}  // namespace far
}  // namespace low_latency
