"""HTTP: codecs, connections, pools and the loops that carry out the engine's actions, sync and asyncio.

codec       h1.py, h2.py            bytes in, response out; no I/O
connection  sync_*.py, async_*.py   moves the bytes of one endpoint
pool        pool.py                 idle connections by endpoint, last in first out
exchange    *exchange.py            one call: the engine's actions carried out, its events reported
shell       shell.py                what a host library (httpx, httpx2) sees
"""
