// Commands to the proxy, and the ring that they are put into: device/src/internode/.
#pragma once
#include "gpu.cuh"

namespace internode {

// A rank, and a lane to it.
struct Target {
    u32 peer, lane;
};

// What a proxy is to do, as it lies in a ring but for the generation.
struct Command {
    Quad quad;

    static constexpr u32 PUT = 1, WORD = 2, SIGNAL = 3;
    DEVICE static Command pack(u32 kind, u32 from, u32 at, u32 size, Target to, u32 channel) {
        return {{from, at, size | (to.lane & 0xff) << 20 | kind << 28, (to.peer & 0xffff) | (channel & 0xff) << 16}};
    }
    DEVICE static Command put(Target to, u32 channel, u64 from, u64 at, u32 bytes) {
        return pack(PUT, (u32)(from / 16), (u32)(at / 16), bytes / 16, to, channel);
    }
    DEVICE static Command word(Target to, u64 at, u64 value) {
        return pack(WORD, (u32)value, (u32)(at / 8), (u32)(value >> 32), to, 0);
    }
    DEVICE static Command signal(Target to, u32 channel, u64 value) {
        return pack(SIGNAL, (u32)value, 0, (u32)(value >> 32), to, channel);
    }
    DEVICE Quad encode(u32 generation) const {
        Quad all = quad;
        all.words[3] |= generation << 24;
        return all;
    }
};

struct Ring {
    Address commands, taken, reserved, seen;
    u32 log2;

    static constexpr u64 LOOK_NS = 1000, LOOK_NS_EACH = 16;
    DEVICE static u32 generation(u32 place, u32 log2) { return ((place >> log2) + 1) & 0xff; }

    // Puts in the commands of those lanes that have one; false, on all lanes, if there was no room in time.
    DEVICE bool push(bool has, const Command &command, u64 deadline_ns) const {
        u32 lanes = warp::ballot(warp::ALL, has);
        if (lanes == 0) return true;
        u32 first = 0;
        bool came = true;
        if (thread::lane() == 0) {
            first = mem::fetch_add_relaxed_gpu_u32(reserved, __popc(lanes));
            came = wait_for_room(first + (__popc(lanes) - 1), deadline_ns);
        }
        first = warp::shuffle(warp::ALL, first, 0);
        u32 place = first + __popc(lanes & warp::lanes_below());
        came = warp::shuffle(warp::ALL, (u32)came, 0) != 0;
        if (has && came) {
            Address at = commands.offset(16 * (u64)(place & ((1u << log2) - 1)));
            mem::store_relaxed_sys_b128(at, command.encode(generation(place, log2)));
        }
        return came;
    }

    DEVICE static void release() { mem::fence_acq_rel_sys(); }

    DEVICE bool wait_for_room(u32 place, u64 deadline_ns) const {
        u32 places = 1u << log2;
        if (place - (u32)mem::load_relaxed_sys_u64(seen) < places) return true;
        while (true) {
            u64 taken_now = mem::load_acquire_sys_u64(taken);
            mem::store_relaxed_sys_u64(seen, taken_now);
            u32 ahead = place - (u32)taken_now;
            if (ahead < places) return true;
            u64 now_ns = clock_::now_ns();
            if (now_ns > deadline_ns) return false;
            u64 missing = ahead - places + 1;
            u64 look_ns = now_ns + LOOK_NS + LOOK_NS_EACH * missing;
            u64 until_ns = look_ns < deadline_ns ? look_ns : deadline_ns, unused;
            mem::wait_at_least_acquire_sys(seen, taken_now + missing, until_ns, unused);
        }
    }
};

// A kernel's way to ranks of other nodes.
struct Link {
    Ring ring;
    Address flags;
    u64 part;
    u32 channel, lanes, ranks;

    DEVICE static Link none() { return Link{}; }
    DEVICE u32 lane_of(u32 number) const { return number % at_least_one(lanes); }
    DEVICE Address flag(u32 of_channel, u32 peer, u32 lane) const {
        return flags.long_at((of_channel * ranks + peer) * lanes + lane);
    }
    DEVICE bool has_come(u32 of_channel, u32 peer, u32 lane, u64 epoch) const {
        return mem::load_acquire_sys_u64(flag(of_channel, peer, lane)) >= epoch;
    }
    DEVICE bool wait(u32 of_channel, u32 peer, u32 lane, u64 epoch, u64 deadline_ns, u64 &seen) const {
        return mem::wait_at_least_acquire_sys(flag(of_channel, peer, lane), epoch, deadline_ns, seen);
    }
};

}  // namespace internode
