"""Two aiortc peers, of which one sends the other video."""

from aiortc import MediaStreamTrack, RTCPeerConnection, RTCRtpSender


async def join(sender: RTCPeerConnection, receiver: RTCPeerConnection, track: MediaStreamTrack, codec: str) -> None:
    """Connect them: the track in that codec, ``VP8`` or ``H264``, goes to the receiver's first video section."""
    sender.addTrack(track)
    codecs = [known for known in RTCRtpSender.getCapabilities("video").codecs if known.mimeType == f"video/{codec}"]
    sender.getTransceivers()[0].setCodecPreferences(codecs)
    await sender.setLocalDescription(await sender.createOffer())
    await receiver.setRemoteDescription(sender.localDescription)
    await receiver.setLocalDescription(await receiver.createAnswer())
    await sender.setRemoteDescription(receiver.localDescription)
