"""A page with live video, over WebRTC: ``longlive-optimized serve``. Needs the extra ``serve``.

One engine makes many streams, each of which has a room: what viewers say -> rtc -> room -> feed, a stream's blocks,
made by worker, the one thread that owns the engine -> broadcast, the frame clock -> encoding, once for all viewers ->
rtc. sessions says which streams there are.
"""
