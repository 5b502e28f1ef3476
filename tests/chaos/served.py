"""`romancy worker tests.chaos.served:app`: the app of the chaos tests as the environment sets it up."""

from tests.chaos.program import program

app = program()
