"""The barriers of ring_attention.cuh, played through in random orders: no deadlock, no tile read before it has landed
or overwritten while it is read, no register touched while a product uses it.

Agents: the feeding warp and eight consuming warps. The copy engine and the tensor cores run beside them; each of their
actions may take effect at any later moment (products of a warpgroup need all four warps, and run in order).
    python bringup/protocol.py [games] [--break NAME]
"""

import random
import sys

BREAK = sys.argv[sys.argv.index("--break") + 1] if "--break" in sys.argv else ""


class Barrier:
    def __init__(self, arrivals):
        self.arrivals = self.pending = arrivals
        self.bytes = self.phase = 0

    def arrive(self, expect=0):
        self.bytes += expect
        self.pending -= 1
        assert self.pending >= 0, "more arrivals than a phase has"
        self._turn()

    def land(self, count):
        self.bytes -= count
        self._turn()

    def _turn(self):
        if self.pending == 0 and self.bytes == 0:
            self.phase += 1
            self.pending = self.arrivals

    def over(self, parity):
        return self.phase % 2 != parity


class Named:
    def __init__(self):
        self.turn, self.came = 0, set()

    def arrive(self, warp):
        assert warp not in self.came, "a warp came twice"
        self.came.add(warp)
        turn = self.turn
        if len(self.came) == 8:
            self.turn, self.came = self.turn + 1, set()
        return turn


class Buffer:
    def __init__(self):
        self.content, self.writing, self.readers = None, 0, 0


class Game:
    def __init__(self, rng, segments, stages, overlap, turns):
        self.rng, self.segments, self.stages, self.overlap, self.turns = rng, segments, stages, overlap, turns
        self.query, self.tile = [Buffer() for _ in range(2)], [Buffer() for _ in range(stages)]
        self.query_full, self.query_empty = [Barrier(1) for _ in range(2)], [Barrier(4) for _ in range(2)]
        self.full, self.empty = [Barrier(1) for _ in range(stages)], [Barrier(8) for _ in range(stages)]
        self.raw = Barrier(1)
        self.named = [Named(), Named()]
        self.copies = []  # boxes under way: (buffer, content, barrier)
        self.products = [[], []]  # of a warpgroup, in order: [warps that issued it, buffer, content, started]
        self.issued, self.done = [0] * 8, [0, 0]

    # --- the feeding warp
    def load(self, buffer, content, barrier):
        assert buffer.readers == 0 and buffer.writing == 0, f"{content} overwrites {buffer.content}"
        barrier.arrive(expect=2)
        buffer.writing = 2
        self.copies += [(buffer, content, barrier)] * 2

    def feed(self):
        stage = parity = raw_parity = 0

        def advance():
            nonlocal stage, parity
            stage += 1
            if stage == self.stages:
                stage, parity = 0, parity ^ 1

        def keys(n, t):
            yield lambda: self.empty[stage].over(parity ^ 1)
            self.load(self.tile[stage], ("k", n, t), self.full[stage])
            advance()

        def values(n, t, short):
            nonlocal raw_parity
            yield lambda: self.empty[stage].over(parity ^ 1)
            if not short:
                self.load(self.tile[stage], ("v", n, t), self.full[stage])
            else:
                self.load(self.tile[stage], ("v, not cleared", n, t), self.raw)
                if BREAK != "raw":
                    yield lambda: self.raw.over(raw_parity)
                raw_parity ^= 1
                buffer = self.tile[stage]
                assert not buffer.writing and not buffer.readers, "cleared while in use"
                yield None
                buffer.content = ("v", n, t)
                self.full[stage].arrive()
            advance()

        for n, (tiles, short) in enumerate(self.segments):
            yield from keys(n, 0)
            for i in range(2):
                if BREAK != "query":
                    yield lambda i=i, n=n: self.query_empty[i].over(~n & 1)
                self.load(self.query[i], ("q", n), self.query_full[i])
            for t in range(tiles):
                if self.overlap and t + 1 < tiles:
                    yield from keys(n, t + 1)
                yield from values(n, t, t in short)
                if not self.overlap and t + 1 < tiles:
                    yield from keys(n, t + 1)

    # --- a consuming warp
    def consume(self, warp):
        group = warp // 4
        place = [0, 0]
        weights_busy = scores_busy = False

        def advance():
            place[0] += 1
            if place[0] == self.stages:
                place[:] = [0, place[1] ^ 1]

        def full(stage, parity):
            return lambda: self.full[stage].over(parity)

        def start(buffers):
            queue, n = self.products[group], self.issued[warp] - self.done[group]
            if n == len(queue):
                queue.append([set(), buffers, False])
            assert queue[n][1] == buffers and warp not in queue[n][0]
            queue[n][0].add(warp)
            self.issued[warp] += 1

        def finished(pending):
            mine = self.issued[warp]
            return lambda: self.done[group] >= mine - pending

        def wait_turn():
            if self.turns:
                turn = self.named[group].arrive(warp)
                yield lambda: self.named[group].turn > turn

        def give_turn():
            if self.turns:
                self.named[group ^ 1].arrive(warp)

        def start_scores(stage, n, t):
            nonlocal scores_busy
            assert not scores_busy, "scores overwritten before they are weights"
            scores_busy = True
            start([(self.query[group], ("q", n)), (self.tile[stage], ("k", n, t))])

        def start_out(stage, n, t):
            nonlocal weights_busy
            weights_busy = True
            start([(self.tile[stage], ("v", n, t))])

        if group == 1:
            give_turn()
        for n, (tiles, _) in enumerate(self.segments):
            yield lambda n=n: self.query_full[group].over(n & 1)
            if self.overlap:
                yield full(*place)
                start_scores(place[0], n, 0)
                yield finished(0)
                self.empty[place[0]].arrive()
                advance()
                values = -1
                for t in range(1, tiles):
                    yield finished(0)
                    weights_busy = False
                    if values >= 0:
                        self.empty[values].arrive()
                    assert not weights_busy
                    scores_busy = False  # pack_weights
                    k = list(place)
                    advance()
                    yield full(*k)
                    yield from wait_turn()
                    start_scores(k[0], n, t)
                    if BREAK != "values":
                        yield full(*place)
                    start_out(place[0], n, t - 1)
                    give_turn()
                    yield finished(0 if BREAK == "serial" else 1)
                    self.empty[k[0]].arrive()
                    if BREAK == "early":
                        self.empty[place[0]].arrive()
                        values = -1
                    else:
                        values = place[0]
                    advance()
                self.query_empty[group].arrive()
                yield finished(0)
                if values >= 0:
                    self.empty[values].arrive()
                weights_busy = scores_busy = False
                yield full(*place)
                start_out(place[0], n, tiles - 1)
                yield finished(0)
                weights_busy = False
                self.empty[place[0]].arrive()
                advance()
            else:
                for t in range(tiles):
                    yield full(*place)
                    yield from wait_turn()
                    start_scores(place[0], n, t)
                    give_turn()
                    yield finished(0)
                    self.empty[place[0]].arrive()
                    advance()
                    scores_busy = False
                    yield full(*place)
                    start_out(place[0], n, t)
                    yield finished(0)
                    weights_busy = False
                    self.empty[place[0]].arrive()
                    advance()
                self.query_empty[group].arrive()
            yield None  # the store
        if group == 0:
            yield from wait_turn()

    # --- the machines beside them
    def land(self):
        buffer, content, barrier = self.copies.pop(self.rng.randrange(len(self.copies)))
        buffer.writing -= 1
        buffer.content = content
        barrier.land(1)

    def ready_products(self):
        return [g for g in range(2) if self.products[g] and len(self.products[g][0][0]) == 4]

    def compute(self, group):
        product = self.products[group][0]
        if not product[2]:
            product[2] = True
            for buffer, content in product[1]:
                assert buffer.content == content and not buffer.writing, f"wanted {content}, found {buffer.content}"
                buffer.readers += 1
        else:
            for buffer, content in product[1]:
                assert buffer.content == content and not buffer.writing
                buffer.readers -= 1
            self.products[group].pop(0)
            self.done[group] += 1

    def play(self):
        agents = {i: self.consume(i) for i in range(8)} | {"feed": self.feed()}
        blocked = dict.fromkeys(agents)
        slow = {a: self.rng.choice([1, 1, 0.2, 0.03]) for a in [*agents, "land", 0.5, 1.5]}  # 0.5 + g: tensor cores
        while agents:
            moves = [a for a in agents if blocked[a] is None or blocked[a]()]
            moves += ["land"] * bool(self.copies) + [g + 0.5 for g in self.ready_products()]
            assert moves, f"deadlock: {list(agents)} wait"
            move = self.rng.choices(moves, [slow[m] for m in moves])[0]
            if move == "land":
                self.land()
            elif move in (0.5, 1.5):
                self.compute(int(move))
            else:
                try:
                    blocked[move] = next(agents[move])
                except StopIteration:
                    del agents[move]
        assert not self.copies and not any(self.products) and not any(n.came for n in self.named), "left undone"


def main():
    games = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    for seed in range(games):
        rng = random.Random(seed)
        segments = []
        for _ in range(rng.randint(0, 5)):
            tiles = rng.choice([1, 1, 2, 3, rng.randint(1, 12)])
            short = {t for t in range(tiles) if rng.random() < 0.2}
            segments.append((tiles, short))
        options = rng.choice([4, 4, 6, 3, 2]), rng.random() < 0.7, rng.random() < 0.7
        try:
            Game(rng, segments, *options).play()
        except AssertionError as error:
            print(f"game {seed}, stages, overlap, turns {options}, segments {segments}: {error}")
            return 1
    print(f"ok: {games} games")
    return 0


if __name__ == "__main__":
    sys.exit(main())
