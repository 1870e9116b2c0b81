use sqlx::{Connection, PgConnection, query, query_scalar};
use stack::data_folder::DataFolder;
use stack::packages::Packages;
use stack::ports;
use stack::postgres::{Durability, Postgres};

#[tokio::test]
async fn a_killed_postgres_comes_back_on_its_port_with_its_data() {
    let packages = Packages::find().expect("the packages");
    let base = DataFolder::temporary().expect("a folder");
    let address = ports::free().expect("a port");
    let folder = base.path().join("postgres");
    let mut server = Postgres::start(&packages, &folder, address, Durability::Full)
        .await
        .expect("it starts");
    server.create_database("drill").await.expect("a database");
    server
        .create_database("drill")
        .await
        .expect("it exists already");
    let url = server.url("drill");

    let mut connection = PgConnection::connect(&url).await.expect("a connection");
    query("create table kept as select 42 as value")
        .execute(&mut connection)
        .await
        .expect("a table");
    server.kill();
    assert!(!server.process().is_running());
    assert!(PgConnection::connect(&url).await.is_err());

    server.restart().await.expect("it starts again");
    let mut connection = PgConnection::connect(&url).await.expect("a connection");
    let value: i32 = query_scalar("select value from kept")
        .fetch_one(&mut connection)
        .await
        .expect("the row");
    assert_eq!(value, 42);

    server
        .stop()
        .await
        .expect("it stops although a client is connected");
    drop(server);
    let server = Postgres::start(&packages, &folder, address, Durability::Full).await;
    let server = server.expect("it starts on old data");
    let mut connection = PgConnection::connect(&server.url("drill"))
        .await
        .expect("a connection");
    let value: i32 = query_scalar("select value from kept")
        .fetch_one(&mut connection)
        .await
        .expect("the row");
    assert_eq!(value, 42);
}
