# mil-zoo: the package, OpenSlide, and its kernels compiled. Build: docker build -t mil-zoo .
# For a GPU, name an image that holds a CUDA build of PyTorch: --build-arg BASE=...
ARG BASE=python:3.12-slim
FROM ${BASE}

ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    OMP_WAIT_POLICY=PASSIVE \
    NUMBA_CACHE_DIR=/opt/mil-zoo/kernels

WORKDIR /opt/mil-zoo/source
COPY setup.cfg setup.py pyproject.toml README.md LICENSE ./
COPY mil_zoo mil_zoo
COPY configs configs
COPY data_cards data_cards

RUN pip install '.[openslide]' \
    && mil-zoo doctor \
    && mil-zoo warm-up \
    && chmod -R a+rwX /opt/mil-zoo/kernels

WORKDIR /work
ENTRYPOINT ["mil-zoo"]
CMD ["--help"]
