"""The same workloads, written for each rival as its own documentation does it. Each runs in the rival's virtual
environment, which has nothing of the project's; from the project they may use what needs the standard library alone."""
