#!/usr/bin/env python3
"""Runs a command on a terminal of its own, types into it, prints what it shows, passes its status on.

usage: terminal.py SECONDS [PATTERN=TEXT]... -- COMMAND...
  PATTERN=TEXT  once PATTERN has been seen, types TEXT (\\n, \\x03 and the like as in Python); in order
The terminal has 33 rows and 77 columns. script(1) is not used: it runs $SHELL, and stops by SIGTTOU.
"""
import fcntl
import os
import pty
import select
import signal
import struct
import sys
import termios
import time

limit = float(sys.argv[1])
cut = sys.argv.index("--")
steps = [step.split("=", 1) for step in sys.argv[2:cut]]
command = sys.argv[cut + 1 :]

pid, master = pty.fork()
if pid == 0:
    fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 77, 0, 0))
    os.execvp(command[0], command)
end = time.monotonic() + limit
seen, position, late = b"", 0, True
while time.monotonic() < end:
    if not select.select([master], [], [], 0.2)[0]:
        continue
    try:
        data = os.read(master, 4096)
    except OSError:
        data = b""
    if not data:
        late = False
        break
    seen += data
    while steps and steps[0][0].encode() in seen[position:]:
        pattern, text = steps.pop(0)
        position = seen.index(pattern.encode(), position) + len(pattern)
        os.write(master, text.encode().decode("unicode_escape").encode())
if late:
    os.kill(pid, signal.SIGKILL)
code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
sys.stdout.write(seen.decode(errors="replace").replace("\r", ""))
if late:
    sys.stderr.write(f"terminal.py: not done after {limit:.0f} s\n")
sys.exit(124 if late else code if code >= 0 else 128 - code)
