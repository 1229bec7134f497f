# An image that trains: docker build --build-arg EXTRAS=tpu -t IMAGE .
FROM python:3.12-slim

ARG EXTRAS=tpu
WORKDIR /deqjax
COPY . .
RUN pip install --no-cache-dir --constraint constraints.txt --editable ".[experiments,${EXTRAS}]"

CMD ["python", "-m", "experiments.language_model", "--help"]
