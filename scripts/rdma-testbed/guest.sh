#!/bin/sh
# Runs in the guest, in the host's root: makes RDMA devices of network interfaces, then runs the command.
#   $ARRANGEMENT one: interfaces v0 and v1, two ends of a cable, with rxe0 and rxe1 on them
#   $ARRANGEMENT two: interface eth0, joined with the other machine's, with rxe0 on it
set -eu
. /mnt/share/environment

# Soft-RoCE on an interface, awaited: the port is active and has the GID of its address.
soft_roce() {
    rdma link add "$1" type rxe netdev "$2"
    tries=0
    until grep -q ACTIVE "/sys/class/infiniband/$1/ports/1/state" &&
        ! grep -q '^0000:0000:0000:0000:0000:0000:0000:0000$' "/sys/class/infiniband/$1/ports/1/gids/1"; do
        tries=$((tries + 1))
        [ $tries -lt 200 ] || { echo "$1 does not come up"; exit 125; }
        sleep 0.05
    done
}

ip link set lo up
case $ARRANGEMENT in
one)
    ip link add v0 type veth peer name v1
    for at in all v0 v1; do
        for setting in accept_local=1 rp_filter=0 arp_ignore=1; do
            echo "${setting#*=}" >"/proc/sys/net/ipv4/conf/$at/${setting%=*}"
        done
    done
    for i in 0 1; do
        ip addr add "10.1.0.$((i + 1))/24" dev "v$i"
        ip link set "v$i" mtu 9000 up
    done
    # Packets from one to the other would not leave the machine, if the local table came first.
    ip rule add pref 10 iif v0 lookup local
    ip rule add pref 11 iif v1 lookup local
    ip rule add pref 20 lookup 100
    ip rule add pref 100 lookup local
    ip rule del pref 0
    ip route add 10.1.0.2 dev v0 src 10.1.0.1 table 100
    ip route add 10.1.0.1 dev v1 src 10.1.0.2 table 100
    soft_roce rxe0 v0
    soft_roce rxe1 v1
    ;;
two)
    ip addr add "10.2.0.$((TOKENRAIL_RANK + 1))/24" dev eth0
    ip link set eth0 mtu 9000 up
    soft_roce rxe0 eth0
    ;;
esac

. /mnt/share/command
