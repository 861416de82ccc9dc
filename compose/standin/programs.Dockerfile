# Our two images as ../Dockerfile makes them, but of programs that were built on the host: PROGRAM is one of them. test.sh
# copies this file, rootfs.sh and the programs into one folder; build.yml builds there.
ARG BASE=evenkeel-standin/base
FROM ${BASE} AS root
ARG PROGRAM
ARG WRITABLE
COPY rootfs.sh ${PROGRAM} /
RUN mkdir -p /usr/local/bin && mv /${PROGRAM} /usr/local/bin/ && sh /rootfs.sh /usr/local/bin/${PROGRAM} /rootfs ${WRITABLE} \
    && ln -s ${PROGRAM} /rootfs/usr/local/bin/program

FROM scratch AS program
ARG VERSION=dev
LABEL org.opencontainers.image.version="$VERSION" standin="built on the host"
COPY --from=root /rootfs /
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/program"]
CMD ["serve"]
