"""The paper's evaluations, one protocol per file; its docstring lists what is trained, chosen and reported."""
