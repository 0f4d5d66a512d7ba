// The programs of kiam's eBPF dataplane: cgroup hooks that send pods' connections for the instance metadata service to
// the agent, and refuse everything else for it.
//
// Helpers, context fields and hooks are those of Linux 5.8; contexts are the kernel's user-space API, so the same
// bytecode is right for every kernel and the headers beside this file are all it is compiled with.

#include <linux/types.h>

// Kubernetes nodes on EC2 are x86-64 or arm64, both little-endian.
#define HTONL(value) __builtin_bswap32(value)
#define HTONS(value) __builtin_bswap16(value)

#define METADATA_IP4 HTONL(0xA9FEA9FE) // 169.254.169.254
#define METADATA_IP6_0 HTONL(0xFD000EC2) // fd00:ec2::254
#define METADATA_IP6_3 HTONL(0x00000254)
#define MAPPED_IP6_2 HTONL(0x0000FFFF) // ::ffff:0:0/96, RFC 4291, 2.5.5.2
#define METADATA_PORT HTONS(80)

#define IPPROTO_ICMP 1
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define IPPROTO_ICMPV6 58
#define IPPROTO_MPTCP 262
#define SOCK_STREAM 1
#define ETH_P_IP 0x0800
#define ETH_P_IPV6 0x86DD
#define ETH_P_8021Q 0x8100
#define ETH_P_8021AD 0x88A8
#define ETH_HEADER 14
#define VLAN_TAG 4
#define IP4_LENGTH 2 // offset in the header, RFC 791
#define IP4_FRAGMENT 6
#define IP4_FRAGMENT_MASK 0x3FFF // more fragments, or an offset
#define IP4_PROTOCOL 9
#define IP4_DESTINATION 16
#define IP6_LENGTH 4 // RFC 8200
#define IP6_NEXT_HEADER 6
#define IP6_DESTINATION 24
#define IP6_HEADER 40
#define TCP_DATA_OFFSET 12 // RFC 9293; the flags follow
#define TCP_SYN 2

#define ALLOW 1
#define REFUSE 0 // the caller sees EPERM

#define CONTINUE -1 // TC_ACT_UNSPEC and TCX_NEXT: others' programs have their say
#define DROP 2      // TC_ACT_SHOT and TCX_DROP

#define MAX_POD_CGROUPS 4
#define MAX_FORWARD 4

// What the counters mean: kiam.dataplane.ebpf.state names them in this order.
enum count {
    REDIRECTS,
    OTHER_PORT,
    OTHER_PROTOCOL,
    IPV6,
    HOST_NETWORK,
    BYPASS,
    COUNTS,
};

enum host_network {
    HOST_NETWORK_IGNORE,
    HOST_NETWORK_DENY,
    HOST_NETWORK_REDIRECT,
};

struct cgroup_place {
    u64 id;
    u32 level;
    u32 used;
};

// kiam.dataplane.ebpf.state packs this layout. Addresses and ports are in network byte order.
struct config {
    u64 host_netns;
    u32 host_ip4;
    u32 port;
    u32 host_ip6[4];
    u32 has_ip6;
    u32 host_network;
    u32 forward_from[MAX_FORWARD]; // indexes of interfaces whose packets may be forwarded; 0: none
    struct cgroup_place agent;
    struct cgroup_place pods[MAX_POD_CGROUPS];
    u8 digest[16];
};

struct peer {
    u32 ip[4];
    u32 port;
};

BPF_ARRAY(kiam_config, struct config, 1);
BPF_PERCPU_ARRAY(kiam_counters, u64, COUNTS);
// Where a redirected socket really is connected to: getpeername answers for these only. The kernel frees the entry with
// its socket.
BPF_SK_STORAGE(kiam_peers, struct peer);
// Asks an old kernel for the network namespace cookie of one socket: element 0 is the socket's cookie, 1 the answer.
BPF_ARRAY(kiam_probe_map, u64, 2);

enum origin { HOST, POD, HOST_NETWORK_POD };

static inline void count(u32 what)
{
    u64 *counter = kiam_counters.lookup(&what);
    if (counter)
        *counter += 1;
}

static inline int is_below(struct cgroup_place *place)
{
    return place->used && bpf_get_current_ancestor_cgroup_id(place->level) == place->id;
}

// A pod has a network namespace that isn't the host's. One on the host network is below kubelet's cgroup, and isn't the
// agent's own pod, which has to reach the real service.
static inline int origin_of(struct bpf_sock_addr *ctx, struct config *config)
{
    if (bpf_get_netns_cookie(ctx) != config->host_netns)
        return POD;
    if (config->host_network == HOST_NETWORK_IGNORE || is_below(&config->agent))
        return HOST;
#pragma unroll
    for (int i = 0; i < MAX_POD_CGROUPS; i++) {
        if (is_below(&config->pods[i]))
            return HOST_NETWORK_POD;
    }
    return HOST;
}

enum verdict { VERDICT_REFUSE = REFUSE, VERDICT_HOST = ALLOW, VERDICT_REDIRECT };

static inline int decide(struct bpf_sock_addr *ctx, struct config *config)
{
    int origin;
    if (!config)
        return VERDICT_REFUSE;
    origin = origin_of(ctx, config);
    if (origin == HOST)
        return VERDICT_HOST;
    if (origin == HOST_NETWORK_POD && config->host_network == HOST_NETWORK_DENY) {
        count(HOST_NETWORK);
        return VERDICT_REFUSE;
    }
    if (ctx->type != SOCK_STREAM || (ctx->protocol != IPPROTO_TCP && ctx->protocol != IPPROTO_MPTCP)) {
        count(OTHER_PROTOCOL);
        return VERDICT_REFUSE;
    }
    if (ctx->user_port != METADATA_PORT) {
        count(OTHER_PORT);
        return VERDICT_REFUSE;
    }
    return VERDICT_REDIRECT;
}

static inline void remember(struct bpf_sock_addr *ctx, u32 a, u32 b, u32 c, u32 d, u32 port)
{
    struct peer *peer;
    if (!ctx->sk)
        return;
    peer = kiam_peers.sk_storage_get(ctx->sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
    if (!peer)
        return;
    peer->ip[0] = a;
    peer->ip[1] = b;
    peer->ip[2] = c;
    peer->ip[3] = d;
    peer->port = port;
}

static inline struct config *the_config(void)
{
    u32 zero = 0;
    return kiam_config.lookup(&zero);
}

int kiam_connect4(struct bpf_sock_addr *ctx)
{
    struct config *config;
    int verdict;

    if (ctx->user_ip4 != METADATA_IP4)
        return ALLOW;
    config = the_config();
    verdict = decide(ctx, config);
    if (!config || verdict != VERDICT_REDIRECT)
        return verdict;
    remember(ctx, config->host_ip4, 0, 0, 0, config->port);
    ctx->user_ip4 = config->host_ip4;
    ctx->user_port = config->port;
    count(REDIRECTS);
    return ALLOW;
}

static inline int is_mapped(struct bpf_sock_addr *ctx)
{
    return ctx->user_ip6[0] == 0 && ctx->user_ip6[1] == 0 && ctx->user_ip6[2] == MAPPED_IP6_2 &&
           ctx->user_ip6[3] == METADATA_IP4;
}

static inline int is_metadata6(struct bpf_sock_addr *ctx)
{
    return ctx->user_ip6[0] == METADATA_IP6_0 && ctx->user_ip6[1] == 0 && ctx->user_ip6[2] == 0 &&
           ctx->user_ip6[3] == METADATA_IP6_3;
}

int kiam_connect6(struct bpf_sock_addr *ctx)
{
    struct config *config;
    int verdict;
    int mapped = is_mapped(ctx);

    if (!mapped && !is_metadata6(ctx))
        return ALLOW;
    config = the_config();
    verdict = decide(ctx, config);
    if (!config || verdict != VERDICT_REDIRECT)
        return verdict;
    if (mapped) {
        remember(ctx, 0, 0, MAPPED_IP6_2, config->host_ip4, config->port);
        ctx->user_ip6[3] = config->host_ip4;
    } else {
        if (!config->has_ip6) {
            count(IPV6);
            return REFUSE;
        }
        remember(ctx, config->host_ip6[0], config->host_ip6[1], config->host_ip6[2], config->host_ip6[3], config->port);
        ctx->user_ip6[0] = config->host_ip6[0];
        ctx->user_ip6[1] = config->host_ip6[1];
        ctx->user_ip6[2] = config->host_ip6[2];
        ctx->user_ip6[3] = config->host_ip6[3];
    }
    ctx->user_port = config->port;
    count(REDIRECTS);
    return ALLOW;
}

// A datagram to a metadata address has no business with the agent, whatever its port.
static inline int decide_datagram(struct bpf_sock_addr *ctx)
{
    struct config *config = the_config();
    int origin;
    if (!config)
        return REFUSE;
    origin = origin_of(ctx, config);
    if (origin == HOST)
        return ALLOW;
    if (origin == HOST_NETWORK_POD && config->host_network == HOST_NETWORK_DENY)
        count(HOST_NETWORK);
    else
        count(OTHER_PROTOCOL);
    return REFUSE;
}

int kiam_sendmsg4(struct bpf_sock_addr *ctx)
{
    return ctx->user_ip4 == METADATA_IP4 ? decide_datagram(ctx) : ALLOW;
}

int kiam_sendmsg6(struct bpf_sock_addr *ctx)
{
    return is_mapped(ctx) || is_metadata6(ctx) ? decide_datagram(ctx) : ALLOW;
}

int kiam_getpeer4(struct bpf_sock_addr *ctx)
{
    struct peer *peer;
    if (!ctx->sk)
        return ALLOW;
    peer = kiam_peers.sk_storage_get(ctx->sk, 0, 0);
    if (peer && ctx->user_ip4 == peer->ip[0] && ctx->user_port == peer->port) {
        ctx->user_ip4 = METADATA_IP4;
        ctx->user_port = METADATA_PORT;
    }
    return ALLOW;
}

int kiam_getpeer6(struct bpf_sock_addr *ctx)
{
    struct peer *peer;
    if (!ctx->sk)
        return ALLOW;
    peer = kiam_peers.sk_storage_get(ctx->sk, 0, 0);
    if (!peer || ctx->user_port != peer->port || ctx->user_ip6[0] != peer->ip[0] || ctx->user_ip6[1] != peer->ip[1] ||
        ctx->user_ip6[2] != peer->ip[2] || ctx->user_ip6[3] != peer->ip[3])
        return ALLOW;
    if (peer->ip[0] == 0 && peer->ip[1] == 0 && peer->ip[2] == MAPPED_IP6_2) {
        ctx->user_ip6[3] = METADATA_IP4;
    } else {
        ctx->user_ip6[0] = METADATA_IP6_0;
        ctx->user_ip6[1] = 0;
        ctx->user_ip6[2] = 0;
        ctx->user_ip6[3] = METADATA_IP6_3;
    }
    ctx->user_port = METADATA_PORT;
    return ALLOW;
}

static inline int packet_is_below(struct __sk_buff *skb, struct cgroup_place *place)
{
    return place->used && bpf_skb_ancestor_cgroup_id(skb, place->level) == place->id;
}

// Attached unless pods on the host network are to be ignored. Their packets never come in from outside the host, where
// the guard would see them; here a raw socket's, or those of a connection older than the programs, are seen by cgroup.
int kiam_egress(struct __sk_buff *skb)
{
    struct config *config;
    u32 ip6[4];
    u32 ip4;

    if (skb->protocol == HTONS(ETH_P_IP)) {
        if (bpf_skb_load_bytes(skb, IP4_DESTINATION, &ip4, sizeof(ip4)) || ip4 != METADATA_IP4)
            return ALLOW;
    } else if (skb->protocol == HTONS(ETH_P_IPV6)) {
        if (bpf_skb_load_bytes(skb, IP6_DESTINATION, &ip6, sizeof(ip6)) || ip6[0] != METADATA_IP6_0 || ip6[1] ||
            ip6[2] || ip6[3] != METADATA_IP6_3)
            return ALLOW;
    } else {
        return ALLOW;
    }
    config = the_config();
    if (!config)
        return REFUSE;
    if (packet_is_below(skb, &config->agent))
        return ALLOW;
#pragma unroll
    for (int i = 0; i < MAX_POD_CGROUPS; i++) {
        if (packet_is_below(skb, &config->pods[i])) {
            count(BYPASS);
            return REFUSE;
        }
    }
    return ALLOW;
}

// Whether a TCP socket is one of the network namespace that the packet's device is in, which is the host's.
static inline int is_of_this_netns(struct __sk_buff *skb, struct bpf_sock *sk, int ipv6)
{
    struct bpf_sock_tuple tuple = {};
    struct bpf_sock *found;
    int size;
    int listens;

    // The tuple is that of a packet to the socket. It's taken from the socket, not from the packet, because SNAT may have
    // changed the packet (the AWS VPC CNI gives the host's own connections random ports).
    if (ipv6) {
        tuple.ipv6.saddr[0] = sk->dst_ip6[0];
        tuple.ipv6.saddr[1] = sk->dst_ip6[1];
        tuple.ipv6.saddr[2] = sk->dst_ip6[2];
        tuple.ipv6.saddr[3] = sk->dst_ip6[3];
        tuple.ipv6.daddr[0] = sk->src_ip6[0];
        tuple.ipv6.daddr[1] = sk->src_ip6[1];
        tuple.ipv6.daddr[2] = sk->src_ip6[2];
        tuple.ipv6.daddr[3] = sk->src_ip6[3];
        tuple.ipv6.sport = sk->dst_port;
        tuple.ipv6.dport = HTONS((u16)sk->src_port);
        size = sizeof(tuple.ipv6);
    } else {
        tuple.ipv4.saddr = sk->dst_ip4;
        tuple.ipv4.daddr = sk->src_ip4;
        tuple.ipv4.sport = sk->dst_port;
        tuple.ipv4.dport = HTONS((u16)sk->src_port);
        size = sizeof(tuple.ipv4);
    }
    found = bpf_skc_lookup_tcp(skb, &tuple, size, BPF_F_CURRENT_NETNS, 0);
    if (!found)
        return 0;
    // A listener of the host's takes packets for any address, so it proves nothing.
    listens = found->state == BPF_TCP_LISTEN;
    bpf_sk_release(found);
    return !listens;
}

// Whether a TCP segment could open a connection or carry a request. The kernel answers for closed connections with bare
// RST and ACK segments, from a socket of its own or one it has forgotten already; nobody gets credentials with these.
static inline int opens_or_carries(struct __sk_buff *skb, u8 version)
{
    u32 header = IP6_HEADER;
    u16 length;
    u16 fragment;
    u8 tcp[2]; // data offset, flags

    if (version >> 4 == 4) {
        header = (version & 15) * 4;
        if (bpf_skb_load_bytes_relative(skb, IP4_LENGTH, &length, sizeof(length), BPF_HDR_START_NET) ||
            bpf_skb_load_bytes_relative(skb, IP4_FRAGMENT, &fragment, sizeof(fragment), BPF_HDR_START_NET) ||
            fragment & HTONS(IP4_FRAGMENT_MASK))
            return 1;
        length = HTONS(length);
    } else {
        if (bpf_skb_load_bytes_relative(skb, IP6_LENGTH, &length, sizeof(length), BPF_HDR_START_NET))
            return 1;
        length = HTONS(length) + IP6_HEADER;
    }
    if (bpf_skb_load_bytes_relative(skb, header + TCP_DATA_OFFSET, &tcp, sizeof(tcp), BPF_HDR_START_NET))
        return 1;
    return tcp[1] & TCP_SYN || length != header + (tcp[0] >> 4) * 4;
}

// Whether a forwarded packet came in on an interface that --forward-metadata=allow names. The kernel sets the index
// anew wherever a packet comes in, from a tunnel too, so a pod can't choose it.
static inline int may_be_forwarded(struct __sk_buff *skb)
{
    struct config *config = the_config();
    u32 index = skb->ingress_ifindex;
    if (!config || !index)
        return 0;
#pragma unroll
    for (int i = 0; i < MAX_FORWARD; i++) {
        if (config->forward_from[i] == index)
            return 1;
    }
    return 0;
}

// Whether a frame is for a metadata address by its own words, up to two VLAN tags skipped. The kernel takes the start of
// a frame from a packet socket's ring (PACKET_TX_RING) for its IP header.
static inline int frame_is_for_metadata(struct __sk_buff *skb)
{
    u16 type;
    u32 ip4;
    u32 ip6[4];
#pragma unroll
    for (u32 header = ETH_HEADER; header <= ETH_HEADER + 2 * VLAN_TAG; header += VLAN_TAG) {
        if (bpf_skb_load_bytes_relative(skb, header - 2, &type, sizeof(type), BPF_HDR_START_MAC))
            return 0;
        if (type == HTONS(ETH_P_IP))
            return !bpf_skb_load_bytes_relative(skb, header + IP4_DESTINATION, &ip4, sizeof(ip4), BPF_HDR_START_MAC) &&
                   ip4 == METADATA_IP4;
        if (type == HTONS(ETH_P_IPV6))
            return !bpf_skb_load_bytes_relative(skb, header + IP6_DESTINATION, &ip6, sizeof(ip6), BPF_HDR_START_MAC) &&
                   ip6[0] == METADATA_IP6_0 && !ip6[1] && !ip6[2] && ip6[3] == METADATA_IP6_3;
        if (type != HTONS(ETH_P_8021Q) && type != HTONS(ETH_P_8021AD))
            return 0;
    }
    return 0;
}

// What becomes of a packet that isn't for a metadata address where the kernel takes its IP header to be. No IP stack
// makes one that is for it all the same.
static inline int otherwise(struct __sk_buff *skb)
{
    if (!frame_is_for_metadata(skb))
        return CONTINUE;
    count(BYPASS);
    return DROP;
}

// On the devices by which packets leave the node: what gets there for a metadata address has to come from a socket of the
// host's own. Some pods' packets never pass the host's network stack, where the guard is: Cilium's eBPF host routing,
// macvlan, ipvlan.
int kiam_uplink(struct __sk_buff *skb)
{
    struct bpf_sock *sk;
    u8 version;
    u8 protocol;
    u32 ip6[4];
    u32 ip4;

    // Not skb->protocol: a packet socket can say there what it likes.
    if (bpf_skb_load_bytes_relative(skb, 0, &version, sizeof(version), BPF_HDR_START_NET))
        return otherwise(skb);
    if (version >> 4 == 4) {
        if (bpf_skb_load_bytes_relative(skb, IP4_DESTINATION, &ip4, sizeof(ip4), BPF_HDR_START_NET) ||
            ip4 != METADATA_IP4)
            return otherwise(skb);
        if (bpf_skb_load_bytes_relative(skb, IP4_PROTOCOL, &protocol, sizeof(protocol), BPF_HDR_START_NET))
            return DROP;
    } else if (version >> 4 == 6) {
        if (bpf_skb_load_bytes_relative(skb, IP6_DESTINATION, &ip6, sizeof(ip6), BPF_HDR_START_NET) ||
            ip6[0] != METADATA_IP6_0 || ip6[1] || ip6[2] || ip6[3] != METADATA_IP6_3)
            return otherwise(skb);
        if (bpf_skb_load_bytes_relative(skb, IP6_NEXT_HEADER, &protocol, sizeof(protocol), BPF_HDR_START_NET))
            return DROP;
    } else {
        return otherwise(skb);
    }

    // Forwarded packets have no socket. Another protocol than these could hide TCP behind an extension header.
    sk = skb->sk;
    if (!sk && may_be_forwarded(skb))
        return CONTINUE;
    if (sk && (protocol == IPPROTO_UDP || protocol == IPPROTO_ICMP || protocol == IPPROTO_ICMPV6))
        return CONTINUE;
    if (sk && protocol == IPPROTO_TCP) {
        sk = bpf_sk_fullsock(sk);
        if (!sk || !opens_or_carries(skb, version))
            return CONTINUE;
        if (sk->protocol == IPPROTO_TCP && is_of_this_netns(skb, sk, version >> 4 == 6))
            return CONTINUE;
    }
    count(BYPASS);
    return DROP;
}

// Only for kernels before 5.14, where SO_NETNS_COOKIE doesn't exist.
int kiam_probe(struct bpf_sock_addr *ctx)
{
    u32 first = 0;
    u32 second = 1;
    u64 *wanted = kiam_probe_map.lookup(&first);
    u64 cookie;
    if (wanted && *wanted == bpf_get_socket_cookie(ctx)) {
        cookie = bpf_get_netns_cookie(ctx);
        kiam_probe_map.update(&second, &cookie);
    }
    return ALLOW;
}
