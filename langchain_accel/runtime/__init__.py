"""The shared device runtime: no torch, no vendor stack, no LangChain; numpy at the boundary."""
