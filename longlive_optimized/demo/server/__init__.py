"""A page with live video, over WebRTC: ``longlive-optimized serve``. One engine, many streams, a room for each. Needs the
extra ``serve``.

what viewers say -> rtc -> room -> feed, a stream's blocks, made by worker, the one thread that owns the engine ->
broadcast, the frame clock -> encoding, once for all viewers -> rtc. sessions says which streams there are.
"""
