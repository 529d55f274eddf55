// A token on its way to another node: device/src/throughput/across/message.rs.
#pragma once
#include "../../wire.cuh"

namespace throughput::across {

// What a message says of a slot.
struct Slot {
    u32 expert;
    u32 weight;
    // How many earlier tokens of the source go to the expert's rank.
    u32 index;
    // How many earlier pairs of the source the expert has. With the expert-major form.
    u32 place;

    DEVICE static Slot none() { return {MAX_U32, 0, 0, 0}; }
};

// Where one begins, in an outbox or an inbox: `Shape::message_bytes`.
struct Message {
    Address at;

    // The `index`th of those that begin at `first`.
    DEVICE static Message nth(const Shape &shape, Address first, u32 index) {
        return {first.offset((u64)index * shape.message_bytes())};
    }

    DEVICE void set_epoch(u64 epoch) const { mem::store_quad(at, {(u32)epoch, (u32)(epoch >> 32), 0, 0}); }
    DEVICE u64 epoch() const {
        Quad quad = mem::load_quad(at);
        return (u64)quad.words[1] << 32 | quad.words[0];
    }
    DEVICE void set_slot(u32 slot, Slot of) const {
        mem::store_quad(slot_at(slot), {of.expert, of.weight, of.index, of.place});
    }
    DEVICE Slot slot(u32 slot) const {
        Quad quad = mem::load_quad(slot_at(slot));
        return {quad.words[0], quad.words[1], quad.words[2], quad.words[3]};
    }
    DEVICE Address slot_at(u32 slot) const { return at.offset(16 + 16 * (u64)slot); }

    // Where its scales begin, its side tensors, one behind the other, and its row.
    DEVICE Address scales(const Shape &shape) const { return at.offset(shape.message_scales()); }
    DEVICE Address sides(const Shape &shape) const { return at.offset(shape.message_sides()); }
    DEVICE Address row(const Shape &shape) const { return at.offset(shape.message_row()); }
};

}  // namespace throughput::across
