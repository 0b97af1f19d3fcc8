"""Tools that DESIGN's list of 17 has and this server does not register yet.

Commands, skills and routed requests may name them; a prompt for one is not offered. When a tool is registered, a test
here fails until its name is removed from this list: so the list says at any time what is missing.
"""

PLANNED: frozenset[str] = frozenset()
