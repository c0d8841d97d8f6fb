package millrace.bench;

import io.confluent.parallelconsumer.ParallelConsumerOptions;
import io.confluent.parallelconsumer.ParallelConsumerOptions.ProcessingOrder;
import io.confluent.parallelconsumer.ParallelStreamProcessor;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;
import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;

/**
 * Reads a topic through Confluent's Parallel Consumer, in key order, and prints one line of JSON.
 *
 * <p>Arguments are name=value: brokers, topic, group, records, slots, work-ms, warm-up-ms, window-ms, max-poll-records. Without
 * work the time is that from the first record to the last; with work it is the window that begins warm-up-ms after the first.
 */
public final class ParallelConsumer {
    private ParallelConsumer() {}

    public static void main(String[] args) throws Exception {
        Map<String, String> given = new HashMap<>();
        for (String arg : args) {
            String[] pair = arg.split("=", 2);
            given.put(pair[0], pair[1]);
        }
        String topic = given.get("topic");
        long records = Long.parseLong(given.get("records"));
        int slots = Integer.parseInt(given.get("slots"));
        long work = Long.parseLong(given.getOrDefault("work-ms", "0"));
        long warmUp = Long.parseLong(given.getOrDefault("warm-up-ms", "0"));
        long window = Long.parseLong(given.getOrDefault("window-ms", "0"));

        Properties config = new Properties();
        config.put(ConsumerConfig.BOOTSTRAP_SERVERS_CONFIG, given.get("brokers"));
        config.put(ConsumerConfig.GROUP_ID_CONFIG, given.get("group"));
        config.put(ConsumerConfig.AUTO_OFFSET_RESET_CONFIG, "earliest");
        config.put(ConsumerConfig.ENABLE_AUTO_COMMIT_CONFIG, "false");
        config.put(ConsumerConfig.KEY_DESERIALIZER_CLASS_CONFIG, ByteArrayDeserializer.class);
        config.put(ConsumerConfig.VALUE_DESERIALIZER_CLASS_CONFIG, ByteArrayDeserializer.class);
        config.put(ConsumerConfig.MAX_POLL_RECORDS_CONFIG, given.getOrDefault("max-poll-records", "500"));

        AtomicLong handled = new AtomicLong();
        AtomicLong first = new AtomicLong();
        AtomicLong last = new AtomicLong();
        CountDownLatch begun = new CountDownLatch(1);
        CountDownLatch all = new CountDownLatch(1);
        ParallelConsumerOptions<byte[], byte[]> options = ParallelConsumerOptions.<byte[], byte[]>builder()
                .consumer(new KafkaConsumer<>(config))
                .ordering(ProcessingOrder.KEY)
                .maxConcurrency(slots)
                .build();
        ParallelStreamProcessor<byte[], byte[]> processor = ParallelStreamProcessor.createEosStreamProcessor(options);
        processor.subscribe(List.of(topic));
        processor.poll(context -> {
            if (first.get() == 0 && first.compareAndSet(0, System.nanoTime())) {
                begun.countDown();
            }
            if (work > 0) {
                try {
                    Thread.sleep(work);
                } catch (InterruptedException e) {
                    Thread.currentThread().interrupt();
                    return;
                }
            }
            if (handled.incrementAndGet() == records) {
                last.set(System.nanoTime());
                all.countDown();
            }
        });

        long counted;
        double seconds;
        if (work > 0) {
            begun.await();
            TimeUnit.MILLISECONDS.sleep(warmUp);
            long from = handled.get();
            long start = System.nanoTime();
            TimeUnit.MILLISECONDS.sleep(window);
            counted = handled.get() - from;
            seconds = (System.nanoTime() - start) / 1e9;
        } else {
            all.await();
            counted = records;
            seconds = (last.get() - first.get()) / 1e9;
        }
        System.out.printf("{\"records\":%d,\"seconds\":%.6f,\"rate\":%.1f}%n", counted, seconds, counted / seconds);
        System.out.flush();
        // It leaves its group if it can do so soon; what is left of the topic is nobody's.
        Thread leaving = new Thread(processor::closeDontDrainFirst);
        leaving.setDaemon(true);
        leaving.start();
        leaving.join(5000);
        Runtime.getRuntime().halt(0);
    }
}
