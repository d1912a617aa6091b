# ActiveMQ Classic as a user without rights, with a place for its data.
FROM apache/activemq:5.19.7
# the health check needs openssl, which comes with the base image's certificates
RUN openssl version \
 && install -d -o 10001 -g 10001 /data
ENV ACTIVEMQ_DATA=/data \
    ACTIVEMQ_TMP=/tmp \
    ACTIVEMQ_OPTS_MEMORY="-Xms64m -Xmx512m"
USER 10001:10001
VOLUME /data
ENTRYPOINT ["/opt/apache-activemq/bin/activemq"]
CMD ["console", "xbean:file:/etc/praval/activemq.xml"]
