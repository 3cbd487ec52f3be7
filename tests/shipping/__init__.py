"""
What is shipped, tried as its users would: packages, images, units, examples. C{make ship-check} runs these tests; C{make check}
does not, because they build and boot whole systems.
"""
