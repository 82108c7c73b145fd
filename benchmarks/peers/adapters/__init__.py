"""One file for each side: how that library is used for the works, as its documentation recommends
for speed.

Each file is a program, run by `driver.Child` in the environment of its library, and imports nothing
of areplay (but for the one that is areplay's). See `protocol.Side` for what it has to offer.
"""
