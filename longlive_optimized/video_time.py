"""How a video counts time, as the VAE and LongLive were trained. Imports nothing, so anyone may import it."""

BLOCK_FRAMES = 3  # latent frames per block
LATENT_PIXEL_FRAMES = 4  # pixel frames per latent frame, but a video's first latent frame has one
BLOCK_PIXEL_FRAMES = BLOCK_FRAMES * LATENT_PIXEL_FRAMES
FIRST_PIXEL_FRAMES = BLOCK_PIXEL_FRAMES - LATENT_PIXEL_FRAMES + 1  # of a video's first block
TRAINED_FPS = 16  # pixel frames per second: the model's time, in which its world moves as fast as it was filmed
RTP_CLOCK = 90_000  # ticks per second of video over RTP


def blocks_of(latents: int) -> int:
    """Blocks that it takes to make so many latent frames."""
    return -(-latents // BLOCK_FRAMES)


def pixel_of(latent: int) -> int:
    """The first pixel frame of a latent frame, both counted from a video's beginning."""
    return max(0, LATENT_PIXEL_FRAMES * (latent - 1) + 1)
