"""Tables of video files: suffixes, containers, encoders, and the first bytes of each kind."""

from __future__ import annotations

import os

# Names that a builder takes for videos; reading the file tells whether it is one.
SUFFIXES = tuple(
    """
    .mp4 .m4v .mov .qt .3gp .3g2 .f4v .webm .mkv .avi .divx .mpg .mpeg .mpe .m1v .m2v .vob
    .ts .mts .m2ts .m2t .flv .wmv .asf .ogv .ogm .rm .rmvb .dv .mxf .gif
    """.split()
)

# Names of files that often lie beside videos and are none: these are not even opened.
OTHER_SUFFIXES = frozenset(
    """
    .txt .md .pdf .json .jsonl .csv .tsv .xml .html .yaml .yml .log .py .sh .mat
    .jpg .jpeg .png .bmp .webp .tif .tiff .heic .npy .npz .pkl .pt .pth .h5 .hdf5
    .zip .rar .7z .tar .gz .tgz .bz2 .xz .srt .vtt .ass .mp3 .wav .flac .m4a
    """.split()
)

# FFmpeg's demuxers that may open a file. The others follow what a file says to other files and to
# the network (hls, concat, dash, sdp), take pictures, texts and games for video, or read what is
# not a file. Those of sound are here so that a file with sound alone can be named as such.
CONTAINERS = tuple(
    """
    mov,mp4,m4a,3gp,3g2,mj2 matroska,webm avi mpeg mpegts flv live_flv kux asf asf_o
    ogg rm gif dv mxf gxf nut nsv wtv ivf yuv4mpegpipe mjpeg mpjpeg mv
    mpegvideo m4v h261 h263 h264 hevc vvc vc1 av1 obu dirac cavsvideo apng
    dhav nuv swf pva ty flic
    mp3 aac wav flac
    """.split()
)

# suffix -> (encoder, its options) of the files that we write: near lossless, and fast rather than
# small. Without cpu-independent, the bytes of H.264 vary from run to run.
H264 = {'crf': '18', 'preset': 'veryfast', 'x264-params': 'cpu-independent=1'}
VP9 = {'crf': '20', 'b': '0', 'deadline': 'realtime', 'cpu-used': '8'}
CODECS = {
    '.mp4': ('libx264', H264),
    '.mkv': ('libx264', H264),
    '.avi': ('mpeg4', {'b': '4000000'}),
    '.webm': ('libvpx-vp9', VP9),
}

# First bytes of a file -> what it is.
SIGNATURES = {
    b'\x1aE\xdf\xa3': 'Matroska, WebM',
    b'\0\0\1\xba': 'MPEG program stream',
    b'\0\0\1\xb3': 'MPEG-1, MPEG-2',
    b'\0\0\1\xb0': 'MPEG-4',
    b'\0\0\0\1g': 'H.264 without a container',
    b"\0\0\0\1'": 'H.264 without a container',
    b'\0\0\0\1@': 'HEVC without a container',
    b'FLV\1': 'FLV',
    b'GIF8': 'GIF',
    b'.RMF': 'RealMedia',
    b'DKIF': 'IVF',
    b'YUV4': 'YUV4MPEG',
    b'\x30\x26\xb2\x75': 'ASF, WMV',
    b'\x06\x0e\x2b\x34': 'MXF',
}
OLD_QUICKTIME = (b'moov', b'mdat', b'wide', b'pnot')
# Brands of MP4's box structure that hold pictures or sound.
NO_VIDEO_BRANDS = (b'hei', b'hev', b'mif', b'msf', b'avi', b'M4A', b'M4B')


def starts_as_video(path: str | os.PathLike) -> bool:
    """Whether the first bytes of a file are those of a container of video, whatever its name."""
    with open(path, 'rb') as file:
        start = file.read(4096)
    kind, brand = start[4:8], start[8:12]
    if kind == b'ftyp':
        return brand[:3] not in NO_VIDEO_BRANDS
    if start[:4] == b'OggS':
        return any(codec in start for codec in (b'theora', b'video', b'BBCD'))
    return (
        start.startswith(tuple(SIGNATURES))
        or kind in OLD_QUICKTIME
        or (start[:4] == b'RIFF' and brand == b'AVI ')
        or any(_marked_every(start, first, step) for first, step in ((0, 188), (4, 192)))
    )


def _marked_every(start, first, step):
    """Whether packets of an MPEG transport stream begin there: three marks, `step` bytes apart."""
    marks = start[first : first + 2 * step + 1 : step]
    return marks == b'GGG'
