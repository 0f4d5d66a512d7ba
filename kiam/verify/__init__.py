"""``kiam dataplane verify``: would a pod on this node get its own role, and never the node's?

Each module here makes one kind of check and gives lines for the table (:mod:`.results`). What decides is plain
functions over what :mod:`kiam.netfilter` reads of the tools' listings; reading the kernel is
:mod:`.snapshot`; :mod:`.live` proves it with real packets. Nothing here trusts the agent or the dataplane that
installed the redirect: it is compared with what the kernel holds and does.
"""
