# mil-zoo: the package, OpenSlide, and its kernels compiled. Build: docker build -t mil-zoo .
# For a GPU, name an image that holds a CUDA build of PyTorch: --build-arg BASE=...
ARG BASE=python:3.12-slim
FROM ${BASE}

ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    OMP_WAIT_POLICY=PASSIVE \
    MPLCONFIGDIR=/tmp/matplotlib \
    NUMBA_CACHE_DIR=/opt/mil-zoo/kernels

WORKDIR /opt/mil-zoo/source
COPY setup.cfg setup.py pyproject.toml README.md LICENSE ./
COPY mil_zoo mil_zoo
COPY configs configs
COPY data_cards data_cards

# The CPU build of PyTorch: the one that PyPI has for Linux brings CUDA, 3.7 GB more. A base image's own PyTorch stays.
RUN pip install --extra-index-url https://download.pytorch.org/whl/cpu '.[openslide]' \
    && mil-zoo doctor \
    && mil-zoo warm-up \
    && chmod -R a+rwX /opt/mil-zoo/kernels

WORKDIR /work
ENTRYPOINT ["mil-zoo"]
CMD ["--help"]
