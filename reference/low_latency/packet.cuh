// Packets, 12 bytes of data and a tag, read and written at once: device/src/low_latency/packet.rs.
#pragma once
#include "../gpu.cuh"

namespace low_latency {

// What a packet carries: a word for each plane.
struct Three {
    u32 words[3];
};

// A lane's part of a tile. Word `i` of a plane's cell is in packet `i`.
struct Tile {
    u32 words[5][3];
    u32 groups[3];
};

namespace packet {

constexpr u64 PACKET_BYTES = 16;

// Never 0, which is what fresh memory holds.
DEVICE u32 tag(u64 epoch) { return (u32)(epoch % MAX_U32) + 1; }

DEVICE Address nth(Address at, u64 index) { return at.offset(PACKET_BYTES * index); }

DEVICE void write(Address to, u32 a, u32 b, u32 c, u32 tag) { mem::store_relaxed_sys_b128(to, {{a, b, c, tag}}); }

// Waits for a packet; false, and what its tag was instead, if it does not come in time.
DEVICE bool read(Address from, u32 tag, u64 deadline_ns, Three &data, bool &waited, u32 &seen) {
    waited = false;
    while (true) {
        Quad quad = mem::load_relaxed_sys_b128(from);
        seen = quad.words[3];
        if (seen == tag) {
            data = {{quad.words[0], quad.words[1], quad.words[2]}};
            return true;
        }
        if (!mem::wait_tag(from, tag, deadline_ns)) return false;
        waited = true;
    }
}

// Makes packets void, a warp together.
DEVICE void void_all(Address from, u32 count) {
    for (u32 index = thread::lane(); index < count; index += thread::WARP) {
        mem::store_relaxed_sys_b128(nth(from, index), Quad{});
    }
}

// Writes a tile whose row has `cells` cells from its beginning on, a warp together.
template <class F>
DEVICE void write_tile(Address to, u32 cells, const Tile &tile, u32 tag) {
    u32 lane = thread::lane();
    Address own = nth(to, lane);
    if (lane < cells) {
#pragma unroll
        for (u32 word = 0; word < F::WORDS; word++) {
            write(nth(own, 32 * word), tile.words[word][0], tile.words[word][1], tile.words[word][2], tag);
        }
    }
    if (F::GROUPED && lane < 4) {
        write(nth(own, 32 * F::WORDS), tile.groups[0], tile.groups[1], tile.groups[2], tag);
    }
}

// What is there of a tile, arrived or not.
struct Peek {
    Quad packets[5];
    Quad groups;

    // Looks at a tile whose row has `cells` cells from its beginning on. All loads are on their way at once.
    template <class F>
    DEVICE static Peek at(Address from, u32 cells) {
        u32 lane = thread::lane();
        Address own = nth(from, lane);
        Peek peek{};
        if (lane < cells) {
#pragma unroll
            for (u32 word = 0; word < F::WORDS; word++) {
                peek.packets[word] = mem::load_relaxed_sys_b128(nth(own, 32 * word));
            }
        }
        if (F::GROUPED && lane < 4) peek.groups = mem::load_relaxed_sys_b128(nth(own, 32 * F::WORDS));
        return peek;
    }

    template <class F>
    DEVICE bool has_come(u32 cells, u32 tag) const {
        u32 lane = thread::lane();
        bool come = true;
        if (lane < cells) {
#pragma unroll
            for (u32 word = 0; word < F::WORDS; word++) come &= packets[word].words[3] == tag;
        }
        if (F::GROUPED && lane < 4) come &= groups.words[3] == tag;
        return come;
    }

    // Waits for what has not arrived; false, and one packet's tag, if it does not come in time.
    template <class F>
    DEVICE bool wait(Address from, u32 cells, u32 tag, u64 deadline_ns, u32 &seen) {
        u32 lane = thread::lane();
        Address own = nth(from, lane);
        while (!has_come<F>(cells, tag)) {
            bool late = false;
            if (lane < cells) {
                for (u32 word = 0; word < F::WORDS; word++) {
                    late |= !mem::wait_tag(nth(own, 32 * word), tag, deadline_ns);
                }
            }
            if (F::GROUPED && lane < 4) late |= !mem::wait_tag(nth(own, 32 * F::WORDS), tag, deadline_ns);
            if (late) {
                seen = packets[0].words[3];
                return false;
            }
            *this = at<F>(from, cells);
        }
        return true;
    }

    template <class F>
    DEVICE Tile tile() const {
        Tile tile{};
#pragma unroll
        for (u32 word = 0; word < F::WORDS; word++) {
#pragma unroll
            for (u32 plane = 0; plane < 3; plane++) tile.words[word][plane] = packets[word].words[plane];
        }
#pragma unroll
        for (u32 plane = 0; plane < 3; plane++) tile.groups[plane] = groups.words[plane];
        return tile;
    }
};

}  // namespace packet
}  // namespace low_latency
