"""Blocks into a queue of your own, shown at an even rate: ``python docs/examples/own_queue.py --blocks 6``

One thread makes blocks, another shows frames. A prompt may be switched from either.
"""

import queue
import threading
import time

import typer

from longlive_optimized.demo.scope_integration import OptimizedScopePipeline, ScopeOptimizationConfig

DEPTH = 24  # frames that may wait: two blocks


def make_blocks(pipeline: OptimizedScopePipeline, blocks: int, frames: queue.Queue) -> None:
    """The producer: a block at a time; it waits when the queue is full."""
    for _ in range(blocks):
        block = pipeline.generate_block("a red circle moves left over a green field")  # uint8 [9, then 12, H, W, 3]
        for picture in block.cpu().numpy():
            frames.put(picture)
    frames.put(None)


def main(model: str = "tiny", blocks: int = 6, fps: float = 16) -> None:
    pipeline = OptimizedScopePipeline(model, ScopeOptimizationConfig.preset_balanced(height=64, width=96))
    pipeline.warmup(num_frames=1)  # compile and capture before anyone watches
    frames = queue.Queue(DEPTH)
    producer = threading.Thread(target=make_blocks, args=(pipeline, blocks, frames), daemon=True)
    producer.start()
    shown, due = 0, time.monotonic()
    while (picture := frames.get()) is not None:
        shown += 1
        if shown == 12:
            pipeline.switch_prompt("a white cross rests on a black night")  # returns at once
        due = max(due + 1 / fps, time.monotonic())  # a late block is not made up for by a rush of frames
        time.sleep(max(0.0, due - time.monotonic()))
        if shown % 12 == 0:  # here a picture would go to a window, an encoder or a network
            print(f"frame {shown}: mean colour {picture.mean(axis=(0, 1)).round().astype(int)}, {frames.qsize()} wait")
    producer.join()
    print(f"{shown} frames")


if __name__ == "__main__":
    typer.run(main)
