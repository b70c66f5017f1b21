"""A page with live video, over WebRTC: ``longlive-optimized serve``. Needs the extra ``serve``.

One engine makes many streams, each of which has a room: what viewers say -> rtc -> room -> commands -> feed, what is
wished for of a stream -> making, its blocks, in the thread of worker, which owns the engine -> frames, that wait ->
broadcast, the frame clock -> encoding, once for all viewers -> rtc. sessions says which streams there are.
"""
