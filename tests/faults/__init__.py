"""What ends a process from outside: nothing that was committed is lost, and the end is the same."""
