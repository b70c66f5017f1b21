"""A page with live video of one pipeline, over WebRTC: ``longlive-optimized serve``. Needs the extra ``serve``.

what viewers say -> rtc -> room -> worker, the one thread that owns the pipeline -> broadcast, the frame clock -> rtc
"""
