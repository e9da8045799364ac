# docker build -t wsflow .
# docker run --rm -v "$PWD:/home/wsflow/work" wsflow fit -c /opt/wsflow/configs/breast_cancer.yaml
FROM python:3.11-slim

COPY . /opt/wsflow
RUN pip install --no-cache-dir --constraint /opt/wsflow/constraints.txt /opt/wsflow \
    && useradd --create-home wsflow \
    && install --directory --owner wsflow /home/wsflow/work

USER wsflow
WORKDIR /home/wsflow/work
ENTRYPOINT ["wsflow"]
