"""HTTP: codecs, connections, pools and the loops that carry out the engine's actions, sync and asyncio.

codec       h1.py, h2.py       bytes in, response out; no I/O
connection  *_connection.py    moves the bytes of one endpoint; async_h2.py shares one between calls
pool        pool.py, pools.py  idle connections by endpoint, last in first out; one pool for each event loop
attempts    *_attempts.py      what a call has under way: the engine's actions carried out
exchange    *_exchange.py      one call: events waited for and reported, the response body read
shell       shell.py           what a host library (httpx, httpx2) sees
"""
