"""iptables and nftables: their rules as data, their programs, and the path of a packet through them."""
