"""
How long requests to an engine may take, in seconds.
"""

CONNECT_TIMEOUT_S = 5.0

#: For how long an answer, or the body of an object, may bring nothing.
READ_TIMEOUT_S = 30.0

#: How long one answer may take from its first byte to its last: an engine that sends a byte now and then is stuck. Objects are
#: excepted, which may take as long as their clients take.
ANSWER_TIMEOUT_S = 60.0

#: For how long a request that stores something may take: less than the five minutes of restic's patience.
STORE_TIMEOUT_S = 240.0
